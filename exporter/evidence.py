"""Pictures to check a bundle with, in place of its golden inputs. Needs numpy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.data import evenly_chosen, open_source
from runtimes.bundle import Bundle
from runtimes.errors import BadInput
from runtimes.preprocess import PIXELS

SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures of a source; int64 labels (pictures,) where they are known and mean the bundle's classes.

    Attributes:
        left_out: what is wrong with each one that could not be read.
    """

    source: str
    images: tuple[Image.Image, ...]
    labels: NDArray[np.int64] | None
    left_out: tuple[str, ...]


def pictures_of(bundle: Bundle, data: str, count: int) -> Pictures:
    """At most `count` pictures that `--data` names, evenly over its classes.

    Raises:
        BadInput: there are none, or none that can be read.
    """
    source = open_source(data)
    places = evenly_chosen(source, count, SEED)
    found: dict[int, Image.Image] = {}
    left_out = []
    for place in map(int, places):
        try:
            found[place] = source.image(place)
        except BadInput as error:
            left_out.append(str(error))
    if not found:
        raise BadInput(f"none of the {len(places)} pictures of {data} can be read ({left_out[0]}); give others")
    known = source.labels is not None and source.classes is not None and source.classes == bundle.labels
    labels = source.labels[list(found)] if known and source.labels is not None else None
    return Pictures(source.name, tuple(found.values()), labels, tuple(left_out))


def fed_pictures(bundle: Bundle, pictures: Pictures) -> NDArray[Any]:
    """The pictures as the bundle's model takes them, (pictures, ...)."""
    preprocess = bundle.manifest.preprocess
    pixels = np.stack([preprocess.pixels(image) for image in pictures.images])
    return pixels if bundle.manifest.inputs[0].dtype == PIXELS else preprocess.normalised(pixels)
