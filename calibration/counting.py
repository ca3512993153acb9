"""Measure the calibration images in shards: what is learnt of them, and a histogram of every tensor's values.

What the shards give adds up to exactly what the whole gives, wherever they are worked on and whichever is done first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.collect import BATCH, Collector, merged
from calibration.data import ImageSource
from calibration.distributed.seen import check_seen
from calibration.distributed.shards import Executor, Shard, shards_of
from calibration.histogram import Histogram
from calibration.reading import check_readable
from calibration.sample import Sample, Seen
from runtimes.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

SHARD = 16 * BATCH
"""So many images in each: seconds, and of a ResNet-50 a megabyte of histograms."""


class Counted(NamedTuple):
    """What is learnt of some images, and the histograms of the tensors, by name."""

    seen: Seen
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class OpenCounter:
    """Opens a worker that counts shards of the images.

    Attributes:
        tensors: of the model, to be counted; with none, the images are only looked at.
        as_pixels: the model has the preprocessing inside, and takes uint8 pixels.
        readable: the place of a picture that a worker must see (`calibration.distributed.seen.first_readable`); None
            asks for none.
    """

    source: ImageSource
    preprocess: Preprocess
    model: onnx.ModelProto
    tensors: Sequence[str]
    as_pixels: bool
    readable: int | None = None

    def __call__(self, threads: int) -> ShardCounter:
        """Open a worker.

        Raises:
            BackendUnavailable: this process does not see the pictures.
        """
        check_seen(self.source, self.readable)
        return ShardCounter(self, threads)

    def inputs(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
        """Turn normalised batches, float32 (images, channels, height, width), into what the model takes."""
        for batch in batches:
            yield self.preprocess.pixels_from_inputs(batch) if self.as_pixels else batch


class ShardCounter:
    """Counts shards of the images, two at once if asked to."""

    def __init__(self, task: OpenCounter, threads: int) -> None:
        self._task = task
        self._collector = Collector(task.model, task.tensors, threads) if task.tensors else None
        self._closed = False

    def work(self, shard: Shard) -> Counted:
        task = self._task
        sample = Sample(task.source, task.preprocess)
        batches = self._until_closed(sample.batches(BATCH, range(shard.start, shard.stop)))
        if self._collector is not None:
            return Counted(sample.seen, self._collector.collect(task.inputs(batches)))
        for _ in batches:
            pass
        return Counted(sample.seen, {})

    def close(self) -> None:
        """End what is under way: nobody waits for it."""
        self._closed = True

    def _until_closed(self, batches: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for batch in batches:
            if self._closed:
                raise ValueError("the worker is closed")
            yield batch


def count_images(
    task: OpenCounter, executor: Executor, on_images: Callable[[int], None] = lambda count: None
) -> Counted:
    """Count all images of a task.

    Args:
        on_images: called with how many more have been read.

    Raises:
        CalibrationError: a tensor is not finite, or more than one image in a hundred cannot be read; names some.
        ExportError: as `Executor.run`.
    """
    count = task.source.count
    seen: dict[int, Seen] = {}
    histograms = {name: Histogram() for name in task.tensors}
    with closing(executor.run(task, shards_of(count, SHARD), task.source.name_of)) as results:
        for shard, counted in results:
            seen[shard.start] = counted.seen
            histograms = merged(histograms, counted.histograms)
            check_readable([reason for start in sorted(seen) for reason in seen[start].unreadable], count)
            on_images(shard.stop - shard.start)
    return Counted(reduce(Seen.merge, (seen[start] for start in sorted(seen)), Seen()), histograms)
