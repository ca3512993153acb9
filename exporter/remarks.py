"""What to make of a drift and of a bisection, in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtimes.budget import Budget
from runtimes.parity import LARGEST_SQNR_DB

if TYPE_CHECKING:
    from exporter.bisect import Bisection
    from exporter.drift import Drift


def drift_remark(drift: Drift) -> str:
    """Which block is out of line, if one is."""
    allowed = allowed_text(drift.budget)
    noisiest = f"{drift.noisiest} adds the most noise, an SQNR of {drift.noisiest_db:.1f} dB by itself"
    if drift.out_of_line is not None:
        return f"{drift.out_of_line} is the first block that alone is beyond {allowed}; {noisiest}"
    said = f"no block is, alone, beyond {allowed}" if allowed else "the budget says neither error nor SQNR"
    return f"{said}; {'none differs at all' if drift.noisiest_db == LARGEST_SQNR_DB else f'{noisiest}, which need not be a fault'}"


def bisection_remark(bisection: Bisection) -> str:
    """Which blocks have to return to FP32, or why none would help."""
    if bisection.verdict == "inside":
        return (
            "inside the budget, rounded as a device rounds: there is nothing to return to FP32, and what a backend adds is not the blocks' precision"
        )
    if bisection.verdict == "not the precision":
        said = ", ".join(bisection.mended.violations) if bisection.mended is not None else ""
        return (
            f"all {len(bisection.blocks)} blocks in FP32 are out of budget too ({said}): the fault is not in the precision; "
            "compare reference.pt2 with what the outputs are held against, or export again"
        )
    mends = "mends" if len(bisection.returned) == 1 else "mend"
    how = "no smaller set does" if bisection.smallest else "none can be taken out, a smaller set of others is not ruled out"
    return f"{', '.join(bisection.returned)} in FP32 {mends} it; {how}"


def allowed_text(budget: Budget) -> str:
    """What a budget says of a block."""
    limits = (("an error of {:.0e}", budget.max_relative_error), ("an SQNR of {:.1f} dB", budget.min_sqnr_db))
    return " and ".join(text.format(limit) for text, limit in limits if limit is not None)
