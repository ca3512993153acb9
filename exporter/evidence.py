"""Pictures to check a bundle with, in place of its golden inputs. Needs numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, evenly_chosen, open_source
from calibration.reading import Unreadable, check_readable, read_ahead
from exporter.fitting import fitting
from runtimes.bundle import Bundle
from runtimes.preprocess import PIXELS, takes_any_size

SEED = 0
DECODED_AHEAD = 4


@dataclass(frozen=True)
class Pictures:
    """Pictures of a source, decoded when they are asked for; the bundle's class indices for them, int64 (pictures,), where they are known.

    Attributes:
        names: their paths below the folder, or their places in the source.
        left_out: what is wrong with each one that could not be read.
        no_accuracy: why accuracy is not measured on pictures that have classes; empty where it is.
    """

    source: ImageSource
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    left_out: tuple[str, ...]
    no_accuracy: str

    def __iter__(self) -> Iterator[Image.Image]:
        """The pictures, one at a time: a hundred photographs are gigabytes."""
        return map(self.source.image, range(self.source.count))


def pictures_of(bundle: Bundle, data: str, count: int) -> Pictures:
    """At most `count` pictures that `--data` names, evenly over its classes.

    Raises:
        BadInput: there are none.
        CalibrationError: more than one picture in a hundred cannot be read; names some.
    """
    source = open_source(data, split="test")
    places = evenly_chosen(source, count, SEED)
    labels, no_accuracy = labels_or_reason(source, ModelClasses(bundle.manifest.model.classes, bundle.labels))
    source = replace(source, labels=labels)
    read = read_ahead(source, map(int, places), lambda image: True, ahead=DECODED_AHEAD)
    good, left_out = [], []
    for place, one in zip(places, read, strict=True):
        if isinstance(one, Unreadable):
            left_out.append(one.reason)
        else:
            good.append(place)
    check_readable(left_out, len(places))
    chosen = source.chosen(np.array(good, np.int64))
    names = chosen.names or tuple(f"{source.name} {place}" for place in good)
    return Pictures(chosen, names, chosen.labels, tuple(left_out), no_accuracy)


def fed_pictures(bundle: Bundle, pictures: Pictures) -> NDArray[Any]:
    """The pictures as the bundle's model takes them, (pictures, ...); for one that takes any size, brought to one where they differ."""
    preprocess, source = bundle.manifest.preprocess, bundle.manifest.inputs[0]
    if takes_any_size(source):
        fit = fitting(((image.width, image.height) for image in pictures), preprocess)
        return np.stack([preprocess.picture(fit(image)) for image in pictures])
    pixels = np.stack([preprocess.pixels(image) for image in pictures])
    return pixels if source.dtype == PIXELS else preprocess.normalised(pixels)
