"""What a drift and a bisection found, as records and as a sentence. Needs no onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtimes.parity.budget import Budget
from runtimes.parity.measures import LARGEST_SQNR_DB, Comparison


@dataclass(frozen=True)
class Bisection:
    """What returning blocks to FP32 does to a bundle that is out of budget.

    Attributes:
        images: how many were fed.
        runs: how many graphs were made and run.
        blocks: the names of all, in order.
        verdict: `inside`, there is nothing to mend; `mended`, returning `returned` brings the bundle inside its budget; `not the precision`, even
            all blocks in FP32 are out of budget, so the fault is in what was lowered.
        returned: the blocks to return, in order. The head returns with the FP32 bias, without what INT8 takes off it to make up for the errors
            of the other blocks, so that its return may cost more than it gains.
        smallest: no smaller set does. Otherwise none of `returned` can be taken out of it, and no more is known.
        lowered: the bundle as it is, simulated.
        mended: with `returned` in FP32, or all blocks where the verdict is `not the precision`; None where it is `inside`.
        ratios_db: the outputs' signal-to-noise ratio with each block alone returned, in the blocks' order; empty unless the verdict is `mended`.
    """

    images: int
    runs: int
    blocks: tuple[str, ...]
    verdict: Literal["inside", "mended", "not the precision"]
    returned: tuple[str, ...]
    smallest: bool
    lowered: Comparison
    mended: Comparison | None
    ratios_db: tuple[float, ...]


@dataclass(frozen=True)
class Deviation:
    """What a block gives, over all images, against what it should give.

    Attributes:
        relative_error: the largest difference, relative to the largest value; `LARGEST_ERROR` where something is not finite.
        sqnr_db: signal to noise in dB; `-LARGEST_SQNR_DB` where something is not finite.
    """

    relative_error: float
    sqnr_db: float


@dataclass(frozen=True)
class Stage:
    """One way to compute the network, and how far each of its blocks is off.

    Attributes:
        name: `onnx fp32`, the FP32 ONNX graph; `model.onnx`, the lowered graph as ONNX Runtime runs it; `simulation`, the lowered graph rounded
            as a device rounds. In these three a block is fed what the one before it gives, so that errors add up, and held against the
            program. `alone` is the simulation (or the file, where there is none) with every block fed what the FP32 graph feeds it, and held
            against that graph, so that each shows its own error alone, and with it that of rounding what it gives. (What INT8 takes off the
            classifier's bias, to make up for the errors of the blocks before, is no error of the head: that graph has it too.)
        blocks: one for each block, in order.
        beyond: the first block that is beyond the budget; None where all are inside.
    """

    name: str
    blocks: tuple[Deviation, ...]
    beyond: str | None


@dataclass(frozen=True)
class Drift:
    """The way from PyTorch to the lowered graph, block by block.

    Attributes:
        images: how many were fed.
        blocks: their names: the stem, the residual blocks and the head, in order; of the head one for each output that it gives.
        budget: its `max_relative_error` and `min_sqnr_db`, which are for the outputs, are held against each block too.
        stages: see `Stage`.
        out_of_line: the first block whose own error, all alone, is beyond what the budget allows the whole network; None where there is
            none, as in a network that is out of budget because many blocks add a little each.
        noisiest: the block whose signal-to-noise ratio is lowest all alone. There is always one: it need not be at fault.
        noisiest_db: that ratio.
    """

    images: int
    blocks: tuple[str, ...]
    budget: Budget
    stages: tuple[Stage, ...]
    out_of_line: str | None
    noisiest: str
    noisiest_db: float


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
        return "inside the budget, rounded as a device rounds: there is nothing to return to FP32, and what a backend adds is not the blocks' precision"
    if bisection.verdict == "not the precision":
        said = ", ".join(bisection.mended.violations) if bisection.mended is not None else ""
        return (
            f"all {len(bisection.blocks)} blocks in FP32 are out of budget too ({said}): the fault is not in the precision; "
            "compare reference.pt2 with what the outputs are held against, or export again"
        )
    mends = "mends" if len(bisection.returned) == 1 else "mend"
    how = (
        "no smaller set does"
        if bisection.smallest
        else "none can be taken out, a smaller set of others is not ruled out"
    )
    return f"{', '.join(bisection.returned)} in FP32 {mends} it; {how}"


def allowed_text(budget: Budget) -> str:
    """What a budget says of a block."""
    limits = (("an error of {:.0e}", budget.max_relative_error), ("an SQNR of {:.1f} dB", budget.min_sqnr_db))
    return " and ".join(text.format(limit) for text, limit in limits if limit is not None)
