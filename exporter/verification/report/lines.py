"""What was found, as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtimes.printable import count_text

if TYPE_CHECKING:
    from exporter.verification.blocks.findings import Bisection, Deviation, Drift
    from exporter.verification.verdicts import BackendCheck, BundleCheck
    from runtimes.parity.compare import ParityReport
    from runtimes.parity.measures import Accuracy, Comparison

SHOWN_FLIPS = 10


def parity_lines(report: ParityReport) -> list[str]:
    """A report as a table with a line for each backend, what its errors are relative to, and what decided it.

    Broken limits are not said here: an error, or the lines of a check, says them.
    """
    batches = ", ".join(map(str, report.batches))
    largest = "value of each output" if any(one.outputs for one in report.backends.values()) else "logit"
    differences = [
        one.max_batch_difference
        for one in report.backends.values()
        if one.max_batch_difference is not None and one.finite
    ]
    differ = ""
    if differences:
        some = f"differ by up to {max(differences):.1e}" if any(differences) else "agree to the last bit"
        differ = f", which {some}"
    how = f"errors relative to the largest reference {largest}; {count_text(report.images)}, batch {batches}{differ}"
    return [*_comparison_lines(report.backends), f"{'':<12} {how}", *_evidence_lines(report)]


def _evidence_lines(report: ParityReport) -> list[str]:
    """The limits that were decided by counting images, with what was counted, and those that are undecided."""
    from runtimes.parity.limits import WORDS

    counted = tuple(WORDS[name] for name in ("min_agreement", "max_accuracy_drop"))
    return [
        f"{'':<12} {name}: {text}"
        for name, one in report.backends.items()
        for text in (*(said for said in one.kept if said.startswith(counted)), *one.undecided)
        if report.budget.confidence is not None
    ]


def _comparison_lines(rows: Mapping[str, Comparison]) -> list[str]:
    """A heading, and a line for each comparison and for each of its outputs where there are several."""
    lines = [
        f"{'parity':<12} {'max error':>10} {'mean':>10} {'p99':>10} {'cosine':>9} {'SQNR dB':>8}"
        f" {'agreement':>10} {'top-5':>8} {'flips':>9}"
    ]
    for name, one in rows.items():
        verdict = "ok" if one.ok else "UNDECIDED" if one.finite and not one.violations else "OUT OF BUDGET"
        lines.append(f"{name:<12} {_measures(one)}  {verdict}")
        lines += [f"  {output:<10} {_measures(measured)}" for output, measured in one.outputs.items()]
    return lines


def _measures(one: Comparison) -> str:
    """The columns of a comparison; what features do not have is a dash."""
    agreement = "-" if one.top1_agreement is None else f"{one.top1_agreement:.2%}"
    overlap = "-" if one.top5_overlap is None else f"{one.top5_overlap:.2%}"
    flips = "-" if one.flips is None else f"{one.flips.total} ({one.flips.counted})" if one.flips.total else "0"
    cosine = "-" if one.worst_cosine is None else f"{one.worst_cosine:.6f}"
    if not one.finite:
        return f"{'-':>10} {'-':>10} {'-':>10} {'-':>9} {'-':>8} {agreement:>10} {overlap:>8} {flips:>9}"
    return (
        f"{one.max_relative_error:>10.2e} {one.mean_relative_error:>10.2e} {one.p99_relative_error:>10.2e} {cosine:>9}"
        f" {one.sqnr_db:>8.1f} {agreement:>10} {overlap:>8} {flips:>9}"
    )


def accuracy_line(measured: Accuracy, backend: str = "") -> str:
    """Top-1 with its interval, beside the reference's, and how many images only one of them has right; of one backend
    where there are several."""
    low, high = measured.interval
    pairs = "" if measured.lost is None else f", {measured.lost} lost and {measured.gained} gained"
    return (
        f"{'accuracy':<12} {backend and f'{backend}: '}{measured.top1:.2%} (95 % interval {low:.2%} to {high:.2%}),"
        f" reference {measured.reference_top1:.2%}, {count_text(measured.images)}{pairs}"
    )


def check_lines(check: BundleCheck) -> list[str]:
    """A checked bundle: parity, broken limits, accuracy and flips of each backend, drift, bisection and changes."""
    from exporter.verification.verdicts import (
        merge_reports,
    )  # here, since `--help` loads this file and may not load numpy

    against = f", {check.evidence} against {check.reference}" if check.images else ""
    lines = [f"{'bundle':<12} {check.bundle}: {check.name}{against}"]
    report = merge_reports(check)
    if report is not None:
        lines += parity_lines(report)
    for one in check.backends:
        if one.answer is None:
            lines.append(f"{one.backend:<12} {one.verdict}: {one.reason}")
            continue
        broken = (limit for limit in one.answer.limits if limit.verdict == "broken")
        lines += [f"{'':<12} {one.backend}: {limit.text}" for limit in broken]
        if one.kernels is not None:
            lines.append(f"{'kernels':<12} {one.backend}: {one.kernels}")
        if one.verdict == "failed":
            lines.append(f"{one.backend:<12} failed: {one.reason}")
        if one.answer.accuracy is not None:
            lines.append(accuracy_line(one.answer.accuracy, one.backend))
        lines += _flip_lines(check, one)
    lines += drift_lines(check.drift) if check.drift is not None else []
    lines += bisection_lines(check.bisection) if check.bisection is not None else []
    lines += [f"{'left out':<12} {problem}" for problem in check.left_out]
    lines += [f"{'accuracy':<12} not measured: {check.no_accuracy}"] if check.no_accuracy else []
    lines += [f"{'':<12} {said}" for said in check.remarks]
    for change in check.changes:
        lines.append(f"{'changed':<12} {change.what}: {change.old or 'nothing'} -> {change.new or 'nothing'}")
    return lines


def _flip_lines(check: BundleCheck, one: BackendCheck) -> list[str]:
    flips = one.answer.flips if one.answer is not None else ()
    lines = []
    for flip in flips[:SHOWN_FLIPS]:
        counts = "counts" if flip.counted else "within the precision's own error"
        classes = f"class {flip.reference} -> {flip.got}, margin {flip.margin:.2e}"
        lines.append(f"{'flip':<12} {one.backend}: {check.image_text(flip.image)}, {classes}, {counts}")
    rest = len(flips) - SHOWN_FLIPS
    return lines if rest <= 0 else [*lines, f"{'':<12} and {rest} more, in --json and --html"]


def drift_lines(drift: Drift) -> list[str]:
    """A table with a line for each block and two columns for each stage, and what to make of it."""
    from exporter.verification.blocks.findings import allowed_text, drift_remark

    width = max(12, *map(len, drift.blocks))
    lines = [
        f"{'blocks':<{width}}" + "".join(f" {stage.name:>19}" for stage in drift.stages),
        f"{'':<{width}}" + f" {'max error':>10} {'SQNR dB':>8}" * len(drift.stages),
    ]
    for place, block in enumerate(drift.blocks):
        each = [stage.blocks[place] for stage in drift.stages]
        lines.append(f"{block:<{width}}" + "".join(map(_deviation_text, each)))
    lines.append(
        f"{'':<{width}} against the reference, errors relative to the block's largest value;"
        f" {count_text(drift.images)}; alone: fed by the FP32 graph"
    )
    for stage in drift.stages[:-1]:
        if stage.beyond is not None:
            lines.append(f"{stage.name:<{width}} beyond {allowed_text(drift.budget)} from {stage.beyond} on")
    return [*lines, f"{'out of line':<{width}} {drift_remark(drift)}"]


def _deviation_text(one: Deviation) -> str:
    from runtimes.parity.measures import LARGEST_ERROR

    if one.relative_error == LARGEST_ERROR:
        return f" {'not finite':>10} {'-':>8}"
    return f" {one.relative_error:>10.2e} {one.sqnr_db:>8.1f}"


def bisection_lines(bisection: Bisection) -> list[str]:
    """The outputs as they are and with blocks returned to FP32, and which blocks to return."""
    from exporter.verification.blocks.findings import bisection_remark

    rows = {"lowered": bisection.lowered}
    if bisection.mended is not None:
        rows["mended" if bisection.verdict == "mended" else "all fp32"] = bisection.mended
    return [
        *_comparison_lines(rows),
        f"{'bisect':<12} {bisection_remark(bisection)}",
        f"{'':<12} {count_text(bisection.runs, 'graph')} run over {count_text(bisection.images)}",
    ]
