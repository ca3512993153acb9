"""Findings as lines of text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtimes.parity.compare import ParityReport
    from runtimes.parity.measures import Accuracy, Comparison


def parity_lines(report: ParityReport) -> list[str]:
    """A report as lines of text: a heading, and a line for each backend."""
    lines = [
        f"{'parity':<12} {'max error':>10} {'mean':>10} {'p99':>10} {'cosine':>9} {'SQNR dB':>8} {'agreement':>10} {'top-5':>8} {'flips':>6}"
    ]
    for name, one in report.backends.items():
        verdict = "ok" if one.ok else "OUT OF BUDGET"
        lines.append(f"{name:<12} {_measures(one)}  {verdict}")
        lines += [f"  {output:<10} {_measures(measured)}" for output, measured in one.outputs.items()]
    batches = ", ".join(map(str, report.batches))
    largest = "value of each output" if any(one.outputs for one in report.backends.values()) else "logit"
    differences = [
        one.max_batch_difference
        for one in report.backends.values()
        if one.max_batch_difference is not None and one.finite
    ]
    differ = (
        ""
        if not differences
        else f", which differ by up to {max(differences):.1e}"
        if any(differences)
        else ", which agree to the last bit"
    )
    return [
        *lines,
        f"{'':<12} errors relative to the largest reference {largest}; {report.images} images, batch {batches}{differ}",
    ]


def _measures(one: Comparison) -> str:
    """The columns of a comparison; what features do not have is a dash."""
    agreement = "-" if one.top1_agreement is None else f"{one.top1_agreement:.2%}"
    overlap = "-" if one.top5_overlap is None else f"{one.top5_overlap:.2%}"
    flips = "-" if one.flips is None else str(one.flips.total)
    cosine = "-" if one.worst_cosine is None else f"{one.worst_cosine:.6f}"
    if not one.finite:
        return f"{'-':>10} {'-':>10} {'-':>10} {'-':>9} {'-':>8} {agreement:>10} {overlap:>8} {flips:>6}"
    return (
        f"{one.max_relative_error:>10.2e} {one.mean_relative_error:>10.2e} {one.p99_relative_error:>10.2e} {cosine:>9}"
        f" {one.sqnr_db:>8.1f} {agreement:>10} {overlap:>8} {flips:>6}"
    )


def accuracy_line(measured: Accuracy, backend: str = "") -> str:
    """Top-1 with its interval, beside the reference's; of one backend where there are several."""
    low, high = measured.interval
    return (
        f"{'accuracy':<12} {backend and f'{backend}: '}{measured.top1:.2%} (95 % interval {low:.2%} to {high:.2%}),"
        f" reference {measured.reference_top1:.2%}, {measured.images} images"
    )
