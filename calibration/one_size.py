"""Pictures brought to one size, for a model that takes any: all of a batch must have the same. Needs Pillow only."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageOps

from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES


def bring_to_one_size(pictures: Iterable[Image.Image], preprocess: Preprocess) -> list[Image.Image]:
    """Pictures as they are, where they have one size and are no larger than `fitting_size`; all of that size otherwise.

    They are taken one at a time, and none that is larger is kept.
    """
    height, width = fitting_size(preprocess)
    kept: list[Image.Image] = []
    fit = False
    for picture in pictures:
        if not fit and (
            picture.width > width or picture.height > height or any(picture.size != one.size for one in kept[:1])
        ):
            fit, kept = True, [ImageOps.fit(one, (width, height)) for one in kept]
        kept.append(ImageOps.fit(picture, (width, height)) if fit else picture)
    return kept


def fitting_size(preprocess: Preprocess) -> tuple[int, int]:
    """A size (height, width) to bring pictures to: larger than the resized ones by half, odd, and not quite of their
    shape.

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
