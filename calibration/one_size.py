"""Bring pictures to one size, for a model that takes any size: within a batch all must have the same. Needs Pillow
only."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageOps

from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES


def bring_to_one_size(pictures: Iterable[Image.Image], preprocess: Preprocess) -> list[Image.Image]:
    """Resize and crop pictures to `fitting_size`; unchanged if they all have one size that is no larger.

    They are read one at a time, and no larger one is kept in memory.
    """
    kept: list[Image.Image] = []
    fit = False
    for picture in pictures:
        if not fit and (is_too_large(picture, preprocess) or any(picture.size != one.size for one in kept[:1])):
            fit, kept = True, [fitted(one, preprocess) for one in kept]
        kept.append(fitted(picture, preprocess) if fit else picture)
    return kept


def is_too_large(picture: Image.Image, preprocess: Preprocess) -> bool:
    """Is the picture higher or wider than `fitting_size`?"""
    height, width = fitting_size(preprocess)
    return picture.width > width or picture.height > height


def fitted(picture: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The picture resized and cropped to `fitting_size`; a picture of that size stays as it is."""
    height, width = fitting_size(preprocess)
    return ImageOps.fit(picture, (width, height))


def fitting_size(preprocess: Preprocess) -> tuple[int, int]:
    """1.5 times the resized size, (height, width): odd, and of a slightly different aspect, so that resize and crop are
    exercised.

    Where the model resizes nothing, 3 pixels higher and 3 narrower than the crop, so that it crops and pads.
    """
    height, width = resized_size(preprocess)
    if preprocess.resize is None:
        return height + 3, max(1, width - 3)
    largest = PICTURE_SIDES[-1]
    return min(height * 3 // 2 | 1, largest), min((width * 3 // 2 | 1) + 2, largest)


def resized_size(preprocess: Preprocess) -> tuple[int, int]:
    """The size, (height, width), that preprocessing resizes a square picture to."""
    if preprocess.resize is None:
        return preprocess.crop
    return preprocess.resize if isinstance(preprocess.resize, tuple) else (preprocess.resize, preprocess.resize)
