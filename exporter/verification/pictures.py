"""Images from `--data` to check a bundle with, in place of its golden inputs. Needs numpy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, check_channels, choose_evenly, open_source
from calibration.one_size import fitted, is_too_large
from calibration.reading import Unreadable, check_readable, read_ahead
from runtimes.bundle import Bundle
from runtimes.errors import BadInput
from runtimes.picture_file import Picture
from runtimes.preprocess import PIXELS, Preprocess, image_from_pixels, takes_any_size
from runtimes.specs import TensorSpec

SEED = 0
DECODED_AHEAD = 4


@dataclass(frozen=True)
class Pictures:
    """Pictures of a source, of which none is kept in memory.

    Attributes:
        names: see `ImageSource.name_of`.
        labels: the bundle's class indices, int64 (pictures,); None where they are not known.
        left_out: what is wrong with each one that could not be read, and what else of the source is not taken.
        no_accuracy: why accuracy is not measured on pictures that have classes; empty where it is.
        are_alike: they all have one size.
    """

    source: ImageSource
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    left_out: tuple[str, ...]
    no_accuracy: str
    are_alike: bool


@dataclass(frozen=True)
class PictureInputs:
    """Pictures as a model takes them, (pictures, ...), read and prepared as rows are asked for: none is kept.

    Attributes:
        spec: the model's input. For one that takes any size, pictures that are not `are_alike` are brought to one size,
            and so is one that is too large.
    """

    source: ImageSource
    preprocess: Preprocess
    spec: TensorSpec
    are_alike: bool

    def __len__(self) -> int:
        return self.source.count

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some of the pictures, in the type of the model's input; decoded in threads.

        Raises:
            BadInput: one cannot be read any more.
        """
        found = []
        for one in read_ahead(self.source, range(len(self))[rows], self._prepared, ahead=DECODED_AHEAD):
            if isinstance(one, Unreadable):
                raise BadInput(f"{one.reason}; it could be read before: leave the pictures alone, and repeat")
            found.append(one)
        return np.stack(found)

    def _prepared(self, picture: Picture) -> NDArray[Any]:
        if not takes_any_size(self.spec):
            pixels = self.preprocess.pixels(picture)
            return pixels if self.spec.dtype == PIXELS else self.preprocess.normalise(pixels)
        image = image_from_pixels(self.preprocess.picture(picture))
        if self.are_alike and not is_too_large(image, self.preprocess):
            return self.preprocess.picture(image)
        return self.preprocess.picture(fitted(image, self.preprocess))


def open_pictures(bundle: Bundle, data: str, count: int) -> Pictures:
    """Find at most `count` readable pictures in `data`, evenly over its classes.

    Raises:
        BadInput: there are none, or they have other channels than the model.
        CalibrationError: more than one picture in a hundred cannot be read; names some.
    """
    preprocess = bundle.manifest.preprocess
    source = open_source(data, split="test")
    check_channels(source, preprocess)
    places = choose_evenly(source, count, SEED)
    labels, no_accuracy = labels_or_reason(source, ModelClasses(bundle.manifest.model.classes, bundle.labels))
    source = replace(source, labels=labels)
    prepare = preprocess.picture if takes_any_size(bundle.manifest.inputs[0]) else preprocess.pixels

    def size_of(picture: Picture) -> tuple[int, ...]:
        prepare(picture)
        return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]

    sizes, good, left_out = set(), [], []
    for place, one in zip(places, read_ahead(source, map(int, places), size_of, ahead=DECODED_AHEAD), strict=True):
        if isinstance(one, Unreadable):
            left_out.append(one.reason)
        else:
            good.append(place)
            sizes.add(one)
    check_readable(left_out, len(places))
    chosen = source.subset(np.array(good, np.int64))
    left_out = [*source.left_out, *left_out]
    names = tuple(map(source.name_of, good))
    return Pictures(chosen, names, chosen.labels, tuple(left_out), no_accuracy, len(sizes) == 1)


def inputs_from_pictures(bundle: Bundle, pictures: Pictures) -> PictureInputs:
    """The pictures as the bundle's model takes them."""
    manifest = bundle.manifest
    return PictureInputs(pictures.source, manifest.preprocess, manifest.inputs[0], pictures.are_alike)
