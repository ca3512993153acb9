"""Drift and bisection as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.verification.blocks.findings import allowed_text, bisection_remark, drift_remark
from exporter.verification.report.lines import parity_lines
from runtimes.parity.compare import ParityReport
from runtimes.parity.measures import LARGEST_ERROR

if TYPE_CHECKING:
    from exporter.verification.blocks.findings import Bisection, Deviation, Drift


def drift_lines(drift: Drift) -> list[str]:
    """A table with a line for each block and two columns for each stage, and what to make of it."""
    width = max(12, *map(len, drift.blocks))
    lines = [
        f"{'blocks':<{width}}" + "".join(f" {stage.name:>19}" for stage in drift.stages),
        f"{'':<{width}}" + f" {'max error':>10} {'SQNR dB':>8}" * len(drift.stages),
    ]
    for place, block in enumerate(drift.blocks):
        each = [stage.blocks[place] for stage in drift.stages]
        lines.append(f"{block:<{width}}" + "".join(map(_deviation_text, each)))
    lines.append(
        f"{'':<{width}} against PyTorch, errors relative to the block's largest value; {drift.images} images; alone: fed by the FP32 graph"
    )
    for stage in drift.stages[:-1]:
        if stage.beyond is not None:
            lines.append(f"{stage.name:<{width}} beyond {allowed_text(drift.budget)} from {stage.beyond} on")
    return [*lines, f"{'out of line':<{width}} {drift_remark(drift)}"]


def _deviation_text(one: Deviation) -> str:
    return (
        f" {'not finite':>10} {'-':>8}"
        if one.relative_error == LARGEST_ERROR
        else f" {one.relative_error:>10.2e} {one.sqnr_db:>8.1f}"
    )


def bisection_lines(bisection: Bisection) -> list[str]:
    """The outputs as they are and as they are mended, and which blocks to return."""
    rows = {"lowered": bisection.lowered}
    if bisection.mended is not None:
        rows["mended" if bisection.verdict == "mended" else "all fp32"] = bisection.mended
    lines = parity_lines(ParityReport(False, bisection.images, (), rows))[:-1]
    return [
        *lines,
        f"{'bisect':<12} {bisection_remark(bisection)}",
        f"{'':<12} {bisection.runs} graphs run over {bisection.images} images",
    ]
