"""The images to prove with, read in blocks: however many and however large they are, one block is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource
from calibration.one_size import fitted, is_too_large
from calibration.reading import Unreadable, read_ahead
from exporter.pipeline.images import Images
from exporter.pipeline.plan import FULL
from exporter.pipeline.resize_proof import images_of_one_size
from runtimes.errors import BadInput
from runtimes.picture_file import Picture
from runtimes.preprocess import Preprocess, image_from_pixels
from runtimes.progress import Steps

DECODED_AHEAD = 4
Read = Iterator[tuple[int, Any]]
"""Places in a source, each with its picture as it is prepared."""


@dataclass(frozen=True)
class PictureReader:
    """Reads pictures of a source as the model takes them; those that cannot be read are left out, and named.

    Attributes:
        source: its labels are the model's classes; None where they are not known.
        uint8_input: what the graph takes, as in `ExportPlan`.
    """

    source: ImageSource
    preprocess: Preprocess
    uint8_input: str | None
    steps: Steps

    def blocks(self, places: Sequence[int] | NDArray[np.int64], size: int) -> Iterator[Images]:
        """The pictures at these places of the source in blocks of `size`, of which the last may be smaller."""
        pictures = self._read(places)
        for first in pictures:
            yield self._images(chain([first], islice(pictures, size - 1)))

    def _read(self, places: Sequence[int] | NDArray[np.int64]) -> Read:
        numbers = list(map(int, places))
        read = read_ahead(self.source, numbers, self._prepare, ahead=DECODED_AHEAD)
        for place, one in zip(numbers, read, strict=True):
            if isinstance(one, Unreadable):
                self.steps.left_out(one.reason)
            else:
                yield place, one

    def _prepare(self, picture: Picture) -> Image.Image | NDArray[np.uint8]:
        if self.uint8_input == FULL:
            image = image_from_pixels(self.preprocess.picture(picture))
            # Once one is too large, all are fitted; those too large here, before they wait: a photograph is 50 MB.
            return fitted(image, self.preprocess) if is_too_large(image, self.preprocess) else image
        return self.preprocess.pixels(picture)

    def _images(self, read: Iterable[tuple[int, Any]]) -> Images:
        places: list[int] = []

        def pictures() -> Iterator[Any]:
            for place, picture in read:
                places.append(place)
                yield picture

        if self.uint8_input == FULL:
            found = images_of_one_size(pictures(), None, self.preprocess)
        else:
            pixels = list(pictures())
            inputs = np.empty((len(pixels), *self.preprocess.shape), np.float32)
            # One by one: all at once would take as much memory again, twice.
            for row, one in zip(inputs, pixels, strict=True):
                row[:] = self.preprocess.normalise(one)
            found = Images(inputs, None, np.stack(pixels) if self.uint8_input else None)
        labels = None if self.source.labels is None else self.source.labels[places]
        return replace(found, labels=labels, places=np.array(places, np.int64))


@dataclass(frozen=True)
class ProofImages:
    """The images to prove with: the first block, and what it takes to read the others.

    Attributes:
        first: the first block; all of them, where there is no `reader`.
        most: how many to prove with at most.
        wanted: how many that would be, were there so many.
        parts: into how many parts of this size the pictures that are not calibrated on were divided.
        rest: the places of the others in the reader's source, in order.
        block: how many to read at a time.
        no_accuracy: why accuracy is not measured on images that have classes; empty where it is.
        plain: images of one colour each, as a network sees them too (a lens cap, padding). They find what photographs
            do not: what divides by the spread of its input divides by zero. None where these are such images.
    """

    first: Images
    most: int
    wanted: int = 0
    parts: int = 1
    reader: PictureReader | None = None
    rest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    block: int = 1
    no_accuracy: str = ""
    plain: Images | None = None

    @classmethod
    def reading(cls, reader: PictureReader, places: NDArray[np.int64], most: int, block: int) -> ProofImages:
        """Of the images at these places, in order, at most `most`; the first block is read.

        Raises:
            BadInput: none can be read.
        """
        first = next(reader.blocks(places, min(block, most)), None)
        if first is None or first.places is None:
            raise BadInput(f"none of the {len(places)} pictures of {reader.source.name} can be read; give others")
        rest = places[int(np.flatnonzero(places == first.places[-1])[0]) + 1 :]
        return cls(first, min(most, len(places)), most, reader=reader, rest=rest, block=block)

    @property
    def available(self) -> int:
        """How many there are, readable or not, whether or not `most` lets them be used."""
        return len(self.first.fed) + len(self.rest)

    def blocks(self) -> Iterator[Images]:
        """The images, block by block: at most `most`, fewer where some cannot be read and there are no others."""
        yield self.first
        left = self.most - len(self.first.fed)
        if self.reader is None or left <= 0:
            return
        for images in self.reader.blocks(self.rest, self.block):
            yield images.chosen(slice(left))
            left -= len(images.fed)
            if left <= 0:
                return

    def names(self, places: NDArray[np.int64]) -> tuple[str, ...]:
        """What a user would call the images that `blocks` gave; empty where they were not read from a source."""
        return () if self.reader is None else tuple(self.reader.source.name_of(int(place)) for place in places)

    def at(self, places: NDArray[np.int64]) -> Images:
        """Images that `blocks` gave, by their places, again.

        Raises:
            BadInput: one cannot be read any more.
        """
        if self.reader is None:
            return self.first.chosen(places)
        found = next(self.reader.blocks(places, len(places)), None)
        if found is None or len(found.fed) < len(places):
            raise BadInput(
                f"pictures of {self.reader.source.name} were changed meanwhile; leave them alone, and repeat"
            )
        return found
