"""What a manifest says of a network's blocks: what INT8 costs in each of them, and which were returned to float.

Float is FP16, or FP32 for a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Wanted = Literal["max_drop", "min_agreement"]
"""What INT8 may cost at most: a fall of top-1, or of the agreement with the reference."""


def limit_text(wanted: Wanted, value: float) -> str:
    """As `a fall of top-1 of at most 0.5 points` or `an agreement of at least 99%`, of points or percent."""
    if wanted == "max_drop":
        return f"a fall of top-1 of at most {value:.10g} point{'s' * (value != 1)}"
    return f"an agreement of at least {value:.10g}%"


@dataclass(frozen=True)
class BlockDamage:
    """What lowering one block alone does to the outputs, everything else in FP32.

    Attributes:
        name: the block's (see `exporter.graph.blocks`).
        damage: of a classifier, the mean over images of the squared change of the gap between the reference's class and
            its runner-up, relative to the squared gap; of features, of the squared change of the outputs, relative to
            their square (see `exporter.lowering.sensitivity`).
        macs: multiply-accumulates of its INT8 convolutions for one image: what it costs to return it to float.
    """

    name: str
    damage: float
    macs: int


@dataclass(frozen=True)
class Sensitivity:
    """The damage of every block, stem and head included, in the graph's order.

    Attributes:
        images: how many of the calibration images it was measured on.
    """

    images: int
    blocks: tuple[BlockDamage, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Each block's share of the sum of the damages, 0..1; to first order they add up."""
        total = sum(block.damage for block in self.blocks) or 1.0
        return {block.name: block.damage / total for block in self.blocks}

    def worst(self, count: int) -> tuple[str, ...]:
        """The names of the blocks with the largest damage, the largest first."""
        return tuple(block.name for block in sorted(self.blocks, key=lambda block: -block.damage)[:count])


@dataclass(frozen=True)
class Tried:
    """One choice of blocks in float, and what the images that were set aside for choosing say of it.

    Attributes:
        returned: the blocks in float, in the graph's order.
        verdict: of the budget, as a proof's.
        images: how many decided it.
        measured: the fall of top-1 or the agreement with the reference, 0..1, whichever was limited.
        limits: one-sided confidence limits of `measured`, low and high, each of the budget's confidence.
        problems: the limits of the budget that are broken or, where none is, those that are undecided, in words.
        int8_share: of the convolutions' multiply-accumulates that are INT8 with every block, how much still is, 0..1.
        bytes: size of the ONNX file.
    """

    returned: tuple[str, ...]
    verdict: Literal["ok", "broken", "undecided"]
    images: int
    measured: float
    limits: tuple[float, float]
    problems: tuple[str, ...]
    int8_share: float
    bytes: int


@dataclass(frozen=True)
class MixedPrecision:
    """Which blocks of an INT8 network are in float, and how they were chosen.

    Attributes:
        wanted: what was asked for: at most a fall of top-1 (--max-drop), or at least an agreement (--min-agreement).
        limit: that fall or agreement, 0..1.
        returned: the blocks in float, in the graph's order.
        blocks: how many might have been returned.
        choosing_images: how many images were set aside for choosing, other ones than those of calibration and proof.
        curve: all choices that were tried, in their order.
    """

    wanted: Wanted
    limit: float
    returned: tuple[str, ...]
    blocks: int
    choosing_images: int
    curve: tuple[Tried, ...]

    @property
    def chosen(self) -> Tried:
        """What was tried of the blocks that were returned."""
        return next(one for one in self.curve if one.returned == self.returned)
