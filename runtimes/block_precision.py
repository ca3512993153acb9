"""What a manifest says of a network's blocks: what INT8 costs in each of them, and which were returned to FP16 for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BlockDamage:
    """What lowering one block alone does to the outputs, everything else in FP32.

    Attributes:
        name: the block's (see `exporter.graph.blocks`).
        damage: of a classifier, the mean over images of the squared change of the gap between the reference's class and
            its runner-up, relative to the squared gap; of features, of the squared change of the outputs, relative to
            their square (see `exporter.lowering.sensitivity`).
        macs: multiply-accumulates of its INT8 convolutions for one image: what it costs to return it to FP16.
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
