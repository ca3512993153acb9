"""Pictures brought to one size, for a model that takes any: all of a batch must have the same. Needs Pillow only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from PIL import Image, ImageOps

from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES


def of_one_size(pictures: Sequence[Image.Image], preprocess: Preprocess) -> list[Image.Image]:
    """Pictures as they are, where they have one size and are no larger than `fitting_size`; all of that size otherwise."""
    return list(map(fitting((picture.size for picture in pictures), preprocess), pictures))


def fitting(sizes: Iterable[tuple[int, int]], preprocess: Preprocess) -> Callable[[Image.Image], Image.Image]:
    """What brings pictures of these sizes, (width, height), to one."""
    height, width = fitting_size(preprocess)
    found = set(sizes)
    if len(found) > 1 or any(size[0] > width or size[1] > height for size in found):
        return lambda picture: ImageOps.fit(picture, (width, height))
    return lambda picture: picture


def fitting_size(preprocess: Preprocess) -> tuple[int, int]:
    """A size (height, width) to bring pictures to: larger than the resized ones by half, odd, and not quite of their shape.

    Where nothing is resized, a little is cut off the height and padded to the width.
    """
    height, width = resized_size(preprocess)
    if preprocess.resize is None:
        return height + 3, max(1, width - 3)
    largest = PICTURE_SIDES[-1]
    return min(height * 3 // 2 | 1, largest), min((width * 3 // 2 | 1) + 2, largest)


def resized_size(preprocess: Preprocess) -> tuple[int, int]:
    """What a square picture is resized to, (height, width)."""
    if preprocess.resize is None:
        return preprocess.crop
    return preprocess.resize if isinstance(preprocess.resize, tuple) else (preprocess.resize, preprocess.resize)
