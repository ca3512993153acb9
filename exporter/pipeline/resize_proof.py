"""Images of any size to prove a graph that resizes them itself, and the proof that it does so as Pillow does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

from calibration.one_size import bring_to_one_size, fitting_size, resized_size
from exporter.graph.pillow_resize import resizing_graph
from exporter.pipeline.images import Images
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import ExportError
from runtimes.preprocess import Preprocess, image_from_pixels
from runtimes.specs import PICTURE_SIDES

RESIZED_IMAGES = 8


def check_resizing(preprocess: Preprocess, opset: int, pictures: Sequence[Image.Image]) -> None:
    """Run the graph's resizing over the pictures in their own size, and over some of them in each of `trial_sizes`.

    Pictures larger than an engine takes are shrunk to that.

    Raises:
        ExportError: a pixel differs from Pillow's.
    """
    sizes = trial_sizes(preprocess)
    resized = (picture.resize((width, height)) for picture, (height, width) in zip(cycle(pictures), sizes))
    trials = [*map(_at_most_engine_size, pictures), *resized]
    with OnnxRuntime.from_bytes(resizing_graph(preprocess, opset).SerializeToString()) as runtime:
        for picture in trials:
            (levels,) = runtime.run({runtime.inputs[0].name: preprocess.picture(picture)[None]}).values()
            differences = np.abs(levels[0].transpose(1, 2, 0) - preprocess.pixels(picture))
            if differences.any():
                raise ExportError(
                    f"expected the graph to resize a picture of {picture.height}x{picture.width} to the pixels of "
                    f"Pillow {pillow_version}, got {np.count_nonzero(differences)} of {differences.size} that differ, "
                    f"by up to {differences.max():g} levels; report it, or take --uint8-input without full, and resize "
                    "outside"
                )


def images_of_one_size(
    pictures: Iterable[Image.Image], labels: NDArray[np.int64] | None, preprocess: Preprocess
) -> Images:
    """Pictures as they are where all have one size no larger than `fitting_size`; resized to that otherwise."""
    fitting = bring_to_one_size(pictures, preprocess)
    return Images(preprocess.batch(fitting), labels, np.stack([preprocess.picture(picture) for picture in fitting]))


def resize_to_fitting_size(images: Images, preprocess: Preprocess, count: int) -> Images:
    """Resize the first `count` images to `fitting_size`; unchanged if they have it."""
    assert images.pixels is not None
    height, width = fitting_size(preprocess)
    if images.pixels.shape[1:3] == (height, width):
        return images
    pictures = [ImageOps.fit(image_from_pixels(pixels), (width, height)) for pixels in images.pixels[:count]]
    return images_of_one_size(pictures, None if images.labels is None else images.labels[:count], preprocess)


def images_of_one_colour(preprocess: Preprocess, *, as_pixels: bool) -> Images:
    """A black, a grey and a white image of the network's size; `as_pixels` for a graph that normalises them itself."""
    pixels = np.stack([np.full((*preprocess.crop, preprocess.channels), level, np.uint8) for level in (0, 128, 255)])
    return Images(preprocess.normalise(pixels), None, pixels if as_pixels else None)


def _at_most_engine_size(picture: Image.Image) -> Image.Image:
    """The picture as it is, or shrunk to the largest that an engine takes."""
    side = PICTURE_SIDES[-1]
    return ImageOps.contain(picture, (side, side)) if max(picture.size) > side else picture


def trial_sizes(preprocess: Preprocess) -> list[tuple[int, int]]:
    """Sizes (height, width) to try, in pixels.

    Larger and smaller than the resized size and equal to it, odd, wide and tall, very narrow, smaller than the crop.
    """
    height, width = resized_size(preprocess)
    sizes = [
        (2 * height + 1, 3 * width),
        (5 * height, width + 1),
        (height // 2 + 1, width // 3 + 1),
        (height, width),
        (height + 1, width),
        (max(1, preprocess.crop[0] - 1), preprocess.crop[1] + 3),
        (1, 3),
    ]
    return [(min(high, PICTURE_SIDES[-1]), min(wide, PICTURE_SIDES[-1])) for high, wide in sizes]
