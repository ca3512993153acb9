"""Drift and bisection as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.cli._common import parity_lines
from runtimes.parity import Budget, ParityReport

if TYPE_CHECKING:
    from exporter.bisect import Bisection
    from exporter.drift import Drift


def drift_lines(drift: Drift) -> list[str]:
    """A table with a line for each block and two columns for each stage, and what to make of it."""
    width = max(12, *map(len, drift.blocks))
    lines = [
        f"{'blocks':<{width}}" + "".join(f" {stage.name:>19}" for stage in drift.stages),
        f"{'':<{width}}" + f" {'max error':>10} {'SQNR dB':>8}" * len(drift.stages),
    ]
    for place, block in enumerate(drift.blocks):
        each = [stage.blocks[place] for stage in drift.stages]
        lines.append(f"{block:<{width}}" + "".join(f" {one.relative_error:>10.2e} {one.sqnr_db:>8.1f}" for one in each))
    lines.append(f"{'':<{width}} against PyTorch, errors relative to the block's largest value; {drift.images} images; alone: fed by the FP32 graph")
    allowed = _allowed(drift.budget)
    for stage in drift.stages[:-1]:
        if stage.beyond is not None:
            lines.append(f"{stage.name:<{width}} beyond {allowed} from {stage.beyond} on")
    fall = f"the SQNR falls most in {drift.falls_most}, by {drift.fall_db:.1f} dB"
    if drift.out_of_line is not None:
        lines.append(f"{'out of line':<{width}} {drift.out_of_line} is the first block that alone is beyond {allowed}; {fall}")
    elif allowed:
        lines.append(f"{'out of line':<{width}} no block is, alone, beyond {allowed}; {fall}, which need not be a fault")
    else:
        lines.append(f"{'out of line':<{width}} the budget says neither error nor SQNR; {fall}, which need not be a fault")
    return lines


def bisection_lines(bisection: Bisection) -> list[str]:
    """The outputs as they are and as they are mended, and which blocks to return."""
    every = f"all {len(bisection.blocks)} blocks"
    rows = {"lowered": bisection.lowered}
    if bisection.mended is not None:
        rows["mended" if bisection.verdict == "mended" else "all fp32"] = bisection.mended
    lines = parity_lines(ParityReport(False, bisection.images, (), rows))[:-1]
    what = {
        "inside": "inside the budget as it is: there is nothing to return to FP32",
        "not the precision": f"{every} in FP32 are out of budget too ({_violations(bisection)}): the fault is not in the precision; "
        "compare reference.pt2 with what the outputs are held against, or export again",
        "mended": f"{', '.join(bisection.returned)} in FP32 {'mends' if len(bisection.returned) == 1 else 'mend'} it; "
        + ("no smaller set does" if bisection.smallest else "none can be taken out, a smaller set of others is not ruled out"),
    }[bisection.verdict]
    return [*lines, f"{'bisect':<12} {what}", f"{'':<12} {bisection.runs} graphs run over {bisection.images} images"]


def _violations(bisection: Bisection) -> str:
    return ", ".join(bisection.mended.violations) if bisection.mended is not None else ""


def _allowed(budget: Budget) -> str:
    """What a budget says of a block."""
    limits = (("an error of {:.0e}", budget.max_relative_error), ("an SQNR of {:.1f} dB", budget.min_sqnr_db))
    return " and ".join(text.format(limit) for text, limit in limits if limit is not None)
