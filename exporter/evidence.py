"""Pictures to check a bundle with, in place of its golden inputs. Needs numpy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.classes import ModelClasses, matched
from calibration.data import ImageSource, evenly_chosen, open_source
from exporter.fitting import of_one_size
from runtimes.bundle import Bundle
from runtimes.errors import BadInput
from runtimes.preprocess import PIXELS, takes_any_size

SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures of a source; the bundle's class indices for them, int64 (pictures,), where they are known.

    Attributes:
        left_out: what is wrong with each one that could not be read.
        no_accuracy: why accuracy is not measured on pictures that have classes; empty where it is.
    """

    source: str
    images: tuple[Image.Image, ...]
    labels: NDArray[np.int64] | None
    left_out: tuple[str, ...]
    no_accuracy: str


def pictures_of(bundle: Bundle, data: str, count: int) -> Pictures:
    """At most `count` pictures that `--data` names, evenly over its classes.

    Raises:
        BadInput: there are none, or none that can be read.
    """
    source, no_accuracy = _labelled(open_source(data, split="test"), bundle)
    left_out = []
    places = evenly_chosen(source, count, SEED)
    found: dict[int, Image.Image] = {}
    for place in map(int, places):
        try:
            found[place] = source.image(place)
        except BadInput as error:
            left_out.append(str(error))
    if not found:
        raise BadInput(f"none of the {len(places)} pictures of {data} can be read ({left_out[-1]}); give others")
    labels = source.labels[list(found)] if source.labels is not None else None
    return Pictures(source.name, tuple(found.values()), labels, tuple(left_out), no_accuracy)


def _labelled(source: ImageSource, bundle: Bundle) -> tuple[ImageSource, str]:
    """The source with the model's class indices for labels; without labels where they are not the model's, and why."""
    classes = bundle.manifest.model.classes
    if source.labels is None or classes == 0:
        return replace(source, labels=None), ""
    try:
        return matched(source, ModelClasses(classes, bundle.labels))[0], ""
    except BadInput as error:
        return replace(source, labels=None), str(error)


def fed_pictures(bundle: Bundle, pictures: Pictures) -> NDArray[Any]:
    """The pictures as the bundle's model takes them, (pictures, ...); for one that takes any size, brought to one where they differ."""
    preprocess, source = bundle.manifest.preprocess, bundle.manifest.inputs[0]
    if takes_any_size(source):
        return np.stack([preprocess.picture(image) for image in of_one_size(pictures.images, preprocess)])
    pixels = np.stack([preprocess.pixels(image) for image in pictures.images])
    return pixels if source.dtype == PIXELS else preprocess.normalised(pixels)
