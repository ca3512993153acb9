"""Compare two evaluations of the same images: how many only one of them has right, and what that says of the fall."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.data import ImageSource
from exporter.verification.accuracy.resume_file import EvaluatedShard, finished_shards
from runtimes.errors import BadInput
from runtimes.parity.intervals import tango_interval

WRONG, RIGHT = 1, 2


@dataclass(frozen=True)
class PairedComparison:
    """An evaluation beside another one, over the images that both could read.

    Attributes:
        against: the other's resume file.
        other_top1: the other's top-1, 0..1.
        fall: the other's top-1 minus this one's.
        interval: the fall's 95 % interval (see `runtimes.parity.intervals.tango_interval`).
        lost, gained: images that only the other one, and only this one, has right.
    """

    against: str
    images: int
    other_top1: float
    fall: float
    interval: tuple[float, float]
    lost: int
    gained: int


class PairedCount:
    """Counts while an evaluation runs; needs a byte for each image.

    Args:
        path: the resume file of the other evaluation.
        source: the images of this one.

    Raises:
        BadInput: it is no resume file, it is of other images, or that evaluation is not finished.
    """

    def __init__(self, path: Path, source: ImageSource) -> None:
        self.path = path
        self._other = bytearray(source.count)  # 0 for an image that could not be read
        self._counts = {(other, ours): 0 for other in (False, True) for ours in (False, True)}
        for shard in finished_shards(path, source):
            for place, label, first, *_ in shard.rows:
                self._other[place] = RIGHT if first == label else WRONG

    def add(self, shard: EvaluatedShard) -> None:
        """Count one more shard of this evaluation."""
        for place, label, first, *_ in shard.rows:
            if self._other[place]:
                self._counts[self._other[place] == RIGHT, first == label] += 1

    def comparison(self) -> PairedComparison:
        """What was counted.

        Raises:
            BadInput: no image was read by both.
        """
        images = sum(self._counts.values())
        if not images:
            raise BadInput(f"--against: {self.path} has no image that could be read here too; give another file")
        lost, gained = self._counts[True, False], self._counts[False, True]
        return PairedComparison(
            against=str(self.path),
            images=images,
            other_top1=(lost + self._counts[True, True]) / images,
            fall=(lost - gained) / images,
            interval=tango_interval(lost, gained, images),
            lost=lost,
            gained=gained,
        )
