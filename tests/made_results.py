"""Results of benchmarks with made-up rates, whose verdicts are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exporter.verification.bench.run import winners_of
from runtimes.benchmark.machine import Machine
from runtimes.benchmark.results import (
    SCHEMA_VERSION,
    Answers,
    BundleFacts,
    Contender,
    Entry,
    Latency,
    Line,
    Result,
    Roof,
    Settings,
    Timing,
)
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.specs import BatchRange, TensorSpec

FOLDER = "bundles/tiny <int8>"
STEADY = (100.0, 101.0, 99.0, 100.5, 99.5, 100.0, 101.0, 99.0, 100.5, 99.5)
"""Rates of ten rounds that vary by less than one percent."""
MACHINE = Machine(
    processor="A processor",
    flags=("avx2",),
    cores=8,
    usable_cores=4,
    governors=("performance",),
    memory_bytes=8 << 30,
    gpu=None,
    system="Linux 6 x86_64",
    python="3.11.0",
    load=0.1,
    versions={"onnxruntime": "1.32.0"},
)


def facts(folder: str = FOLDER, **changes: object) -> BundleFacts:
    made = BundleFacts(
        folder=folder,
        name="tiny-int8",
        sha256="a" * 64,
        precision="int8",
        target="cpu",
        model=ModelFacts("tiny", "tests", "cifar", 10, WeightsFacts("random", "0" * 64)),
        inputs=(TensorSpec("input", "float32", ("batch", 1, 28, 28)),),
        batch=BatchRange(1, 8, 8),
        macs=1_000_000,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name, as the tests give them


def entry(
    backend: str,
    rates: Sequence[float] = STEADY,
    *,
    folder: str = FOLDER,
    provider: str = "cpu",
    variant: str = "",
    right: bool = True,
) -> Entry:
    """One that was measured at batch 1 and, four times as fast, at batch 8, on two lines."""
    lines: tuple[Line, ...] = ("device", "copies")
    timings = [
        Timing(line, batch, tuple(factor * rate for rate in rates), 10 * len(rates))
        for line in lines
        for batch, factor in ((1, 1.0), (8, 4.0))
    ]
    return Entry(
        Contender(folder, backend, provider, variant),
        "ok",
        import_s=0.1,
        load_s=0.2,
        warm_up_s=0.3,
        warm_up_calls=6,
        memory_bytes=100_000_000,
        answers=Answers(40.0, 1e-3, 16, right),
        timings=tuple(timings),
        latency=Latency(1, 100, tuple(10 + place / 100 for place in range(101))),
    )


def result(*entries: Entry, bundles: Sequence[BundleFacts] = (), **changes: object) -> Result:
    """A result of these entries, with the winners that follow from them."""
    known = tuple(bundles) or (facts(),)
    made = Result(
        schema_version=SCHEMA_VERSION,
        date="2026-11-27",
        machine=MACHINE,
        settings=Settings(10, 0.25, 4, None, ""),
        bundles=known,
        entries=entries,
        winners=tuple(winner for bundle in known for winner in winners_of(bundle, entries)),
        roofs=(Roof("int8", "cpu", 1e9, "onnxruntime", 2048), Roof("fp32", "cpu", 5e8, "numpy", 2048)),
        variation=0.01,
        drift=1.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # as above


def slowed(rates: Sequence[float], by: float) -> tuple[float, ...]:
    return tuple(rate / by for rate in rates)


def by_name(found: Result) -> Mapping[str, Entry]:
    return {one.contender.name: one for one in found.entries}
