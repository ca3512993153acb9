"""The findings of a drift and of a bisection: records, and a sentence on each. Needs no onnx."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from runtimes.parity.budget import Budget
from runtimes.parity.measures import LARGEST_SQNR_DB, Comparison
from runtimes.printable import count_text

OWN_SQNR_DB = 20.0
"""An error of a tenth: INT8's rounding alone is well above it, and a network's floor may be lower."""


@dataclass(frozen=True)
class Bisection:
    """Which blocks to return to FP32, so that a bundle that is out of budget comes inside it.

    Attributes:
        images: how many were fed.
        runs: how many graphs were made and run.
        blocks: the names of all blocks, in order.
        verdict: `inside`, the bundle is inside its budget; `mended`, it is with `returned` in FP32;
            `not the precision`, it is not even with all blocks in FP32, so that the fault is in what was lowered.
        returned: the blocks to return, in order. The head returns with the FP32 bias, without the correction that INT8
            makes to it for the errors of the other blocks, so that its return may cost more than it gains.
        smallest: no smaller set is enough. Where this is false, none of `returned` can be spared, and no more is known.
        lowered: the bundle as it is, simulated.
        mended: with `returned` in FP32, or all blocks where the verdict is `not the precision`; None for `inside`.
        ratios_db: the outputs' signal-to-noise ratio with each block alone in FP32, in the blocks' order; empty unless
            the verdict is `mended`.
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
    """How far a block's output is off, over all images.

    Attributes:
        relative_error: the largest difference, relative to the largest value; `LARGEST_ERROR` where one is not finite.
        sqnr_db: the signal-to-noise ratio in dB, of logits without their mean over the classes; `-LARGEST_SQNR_DB`
            where a value is not finite.
    """

    relative_error: float
    sqnr_db: float


@dataclass(frozen=True)
class Stage:
    """One way to compute the network, and how far each of its blocks is off.

    In the first three ways each block is fed what the one before it gives, so that errors add up, and is compared with
    the program. In the last one each block is fed exact FP32 input, so that it shows its own error alone (that of
    rounding its output included), and is compared with the FP32 graph. Both sides of that comparison have INT8's
    correction of the classifier's bias, which is for the errors of the blocks before: it is no error of the head.

    Attributes:
        name: `onnx fp32`, the FP32 ONNX graph; `model.onnx`, the lowered graph as ONNX Runtime runs it; `simulation`,
            the lowered graph rounded as a device rounds; `alone`, the simulation, or the file where there is none, with
            each block on its own.
        blocks: one for each block, in order.
        beyond: the first block that is beyond the budget; None where all are inside.
    """

    name: str
    blocks: tuple[Deviation, ...]
    beyond: str | None


@dataclass(frozen=True)
class Drift:
    """How far the values drift from PyTorch to the lowered graph, block by block.

    Attributes:
        images: how many were fed.
        blocks: names of the stem, the residual blocks and the head, in order; the head has one for each of its outputs.
        budget: its `max_relative_error` and `min_sqnr_db` are meant for the outputs; each block is held to them too,
            and by itself to `budget_of_one_block`.
        stages: in the order of `Stage.name`.
        out_of_line: the first block whose own error is beyond `budget_of_one_block`; None where
            there is none, as in a network that is out of budget because many blocks add a little each.
        noisiest: the block whose own signal-to-noise ratio is lowest. There is always one; it need not be at fault.
        noisiest_db: that ratio.
    """

    images: int
    blocks: tuple[str, ...]
    budget: Budget
    stages: tuple[Stage, ...]
    out_of_line: str | None
    noisiest: str
    noisiest_db: float


def budget_of_one_block(budget: Budget) -> Budget:
    """What a block may cost by itself: the budget of the whole network, and never an SQNR below `OWN_SQNR_DB`."""
    if budget.min_sqnr_db is None:
        return budget
    return replace(budget, min_sqnr_db=max(budget.min_sqnr_db, OWN_SQNR_DB))


def drift_remark(drift: Drift) -> str:
    """Which block adds the most noise, and whether one is out of line; without a full stop."""
    allowed = allowed_text(budget_of_one_block(drift.budget))
    noisiest = f"{drift.noisiest} adds the most noise, an SQNR of {drift.noisiest_db:.1f} dB by itself"
    if drift.out_of_line is not None:
        return f"{drift.out_of_line} is the first block that alone is beyond {allowed}; {noisiest}"
    verdict = f"no block is, alone, beyond {allowed}" if allowed else "the budget says neither error nor SQNR"
    is_exact = drift.noisiest_db == LARGEST_SQNR_DB
    return f"{verdict}; {'none differs at all' if is_exact else f'{noisiest}, which need not be a fault'}"


def bisection_remark(bisection: Bisection) -> str:
    """Which blocks to return to FP32, or why none would help; without a full stop."""
    if bisection.verdict == "inside":
        return (
            f"within the budget over {count_text(bisection.images)} when rounded as a device does, so no block needs "
            "FP32; if a backend is out of budget, the blocks' precision is not the cause"
        )
    if bisection.verdict == "not the precision":
        violations = ", ".join(bisection.mended.violations) if bisection.mended is not None else ""
        return (
            f"all {len(bisection.blocks)} blocks in FP32 are out of budget too ({violations}): "
            "the fault is not in the precision; "
            "compare reference.pt2 with what the outputs are held against, or export again"
        )
    mends = "mends" if len(bisection.returned) == 1 else "mend"
    how = "no smaller set does" if bisection.smallest else "each of these is needed; another, smaller set may exist"
    return f"{', '.join(bisection.returned)} in FP32 {mends} it; {how}"


def allowed_text(budget: Budget) -> str:
    """The limits of a budget that a block is held to, in words; empty where there are none."""
    limits = (("an error of {:.0e}", budget.max_relative_error), ("an SQNR of {:.1f} dB", budget.min_sqnr_db))
    return " and ".join(text.format(limit) for text, limit in limits if limit is not None)
