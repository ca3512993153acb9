"""What a reader has to know of a measurement beside its figures."""

from __future__ import annotations

from dataclasses import replace

from runtimes.benchmark.results import Entry
from runtimes.manifest import Manifest
from runtimes.processor import Processor, processor


def remarks_on(entry: Entry, manifest: Manifest, here: Processor | None = None) -> Entry:
    """The entry with remarks of its own: what it runs instead of what was asked, and why it may be slow.

    Args:
        here: the processor that it ran on; None is this one.
    """
    if not entry.ok:
        return entry
    here, said = here or processor(), list(entry.remarks)
    on_cpu = entry.contender.provider == "cpu"
    reference = entry.contender.runs_reference
    if entry.contender.is_served:
        said.append(
            f"it runs on a server, {entry.contender.provider}: its time to load and its memory are the client's alone, "
            "and each call goes there and back"
        )
    if reference:
        said.append("it runs the FP32 reference, not the bundle's own graph")
    if on_cpu and manifest.precision == "int8" and not reference and not here.has_int8_dot:
        said.append(
            f"INT8 is tuned for a processor with instructions for it (VNNI, AMX, ARM's dot product), which {here} has "
            "not"
        )
    if on_cpu and manifest.precision == "bf16" and not reference and not here.has_bf16:
        said.append(f"BF16 is fast where the processor multiplies in it, which {here} does not")
    if entry.answers is not None and not entry.answers.within_budget:
        said.append(
            f"its answers are out of the bundle's budget (SQNR {entry.answers.sqnr_db:.1f} dB, largest error "
            f"{entry.answers.max_relative_error:.1e}), so it wins nothing"
        )
    if not entry.steady:
        said.append("its speed had not settled when the rounds began; give --warm-up")
    return replace(entry, remarks=tuple(said))
