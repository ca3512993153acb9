"""Images from `--data` to check a bundle with, in place of its golden inputs. Needs numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, check_channels, choose_evenly, open_source
from calibration.one_size import bring_to_one_size
from calibration.reading import Unreadable, check_readable, read_ahead
from runtimes.bundle import Bundle
from runtimes.picture_file import Picture
from runtimes.preprocess import PIXELS, image_from_pixels, takes_any_size

SEED = 0
DECODED_AHEAD = 4


@dataclass(frozen=True)
class Pictures:
    """Pictures of a source, decoded as they are iterated over.

    Attributes:
        names: see `ImageSource.name_of`.
        labels: the bundle's class indices, int64 (pictures,); None where they are not known.
        left_out: what is wrong with each one that could not be read, and what else of the source is not taken.
        no_accuracy: why accuracy is not measured on pictures that have classes; empty where it is.
    """

    source: ImageSource
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    left_out: tuple[str, ...]
    no_accuracy: str

    def __iter__(self) -> Iterator[Picture]:
        """The pictures, one at a time: a hundred photographs are gigabytes."""
        return map(self.source.picture, range(self.source.count))


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
    read = read_ahead(source, map(int, places), lambda picture: prepare(picture).size, ahead=DECODED_AHEAD)
    good, left_out = [], []
    for place, one in zip(places, read, strict=True):
        if isinstance(one, Unreadable):
            left_out.append(one.reason)
        else:
            good.append(place)
    check_readable(left_out, len(places))
    chosen = source.subset(np.array(good, np.int64))
    return Pictures(chosen, tuple(map(source.name_of, good)), chosen.labels, (*source.left_out, *left_out), no_accuracy)


def inputs_from_pictures(bundle: Bundle, pictures: Pictures) -> NDArray[Any]:
    """The pictures as the bundle's model takes them, (pictures, ...), in the type of its input.

    For a model that takes any size, they are brought to one size where they differ.
    """
    preprocess, source = bundle.manifest.preprocess, bundle.manifest.inputs[0]
    if takes_any_size(source):
        images = (image_from_pixels(preprocess.picture(picture)) for picture in pictures)
        return np.stack([preprocess.picture(image) for image in bring_to_one_size(images, preprocess)])
    pixels = np.stack([preprocess.pixels(picture) for picture in pictures])
    return pixels if source.dtype == PIXELS else preprocess.normalise(pixels)
