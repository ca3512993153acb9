"""The calibration images: decoded while the model runs, checked, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration import FEWEST_IMAGES
from calibration.data import ImageSource
from calibration.reading import Unreadable, check_readable, read_ahead
from runtimes.errors import CalibrationError
from runtimes.picture_file import Picture
from runtimes.preprocess import Preprocess

AHEAD = 4
NOISE_CORRELATION = 0.1
DIGEST_BITS = 256
ROUNDING = 1e-9
"""What is smaller, relative to the mean square, is no spread but rounding."""
STRIP_PIXELS = 1 << 18
"""How much of a picture is looked at at a time: a copy in float32 of a photograph is 50 MB, and several are made."""


class _Prepared(NamedTuple):
    """A picture's pixels, uint8 (height, width, channels), of the model's size; the sha256 of the whole picture; and
    its `neighbour_correlation`."""

    pixels: NDArray[np.uint8]
    digest: bytes
    correlation: float


@dataclass
class Seen:
    """What is learnt of pictures as they are read. What two parts of them give adds up to exactly what the whole gives.

    Attributes:
        images: pictures decoded so far.
        unreadable: why, for each picture that could not be read.
        noisy: pictures whose neighbouring pixels are unrelated.
        digests: sum of the pictures' sha256 digests modulo 2**256, so that it does not depend on their order.
        distinct: the digests of different pictures, the smallest two.
    """

    images: int = 0
    unreadable: list[str] = field(default_factory=list)
    noisy: int = 0
    digests: int = 0
    distinct: frozenset[bytes] = frozenset()

    @property
    def fingerprint(self) -> str:
        """`digests` in hex."""
        return f"{self.digests:0{DIGEST_BITS // 4}x}"

    def add(self, digest: bytes, correlation: float) -> None:
        """Count one more picture, by its sha256 and its `neighbour_correlation`."""
        self.images += 1
        self.digests = (self.digests + int.from_bytes(digest, "big")) % (1 << DIGEST_BITS)
        self.noisy += correlation < NOISE_CORRELATION
        self.distinct = _smallest_two(self.distinct | {digest})

    def merge(self, other: Seen) -> Seen:
        """What both saw together, `other` after this one; a new one."""
        digests = (self.digests + other.digests) % (1 << DIGEST_BITS)
        unreadable = [*self.unreadable, *other.unreadable]
        distinct = _smallest_two(self.distinct | other.distinct)
        return Seen(self.images + other.images, unreadable, self.noisy + other.noisy, digests, distinct)

    def check(self, *, allow_few: bool) -> None:
        """Refuse images that no range can be measured from.

        Raises:
            CalibrationError: too few, one picture repeated, or noise.
        """
        if self.images < (1 if allow_few else FEWEST_IMAGES):
            raise CalibrationError(
                f"expected at least {FEWEST_IMAGES} calibration images, got {self.images}; give more, or "
                "--allow-few-images if that is all there is"
            )
        if self.images > 1 and len(self.distinct) == 1:
            raise CalibrationError(
                f"all {self.images} calibration images are one picture repeated; give images like those the model will "
                "see"
            )
        if 2 * self.noisy > self.images:
            raise CalibrationError(
                "the calibration images look like random noise (neighbouring pixels are unrelated); give real images"
            )


@dataclass
class Sample:
    """Batches of a source's pictures, and what is learnt of the pictures as they are read."""

    source: ImageSource
    preprocess: Preprocess
    seen: Seen = field(default_factory=Seen)

    def batches(self, size: int, places: range | None = None) -> Iterator[NDArray[np.float32]]:
        """Preprocessed batches, float32 (size, channels, height, width), of which the last may be smaller.

        Decoding runs ahead in threads.

        Args:
            places: which pictures of the source; None takes all.

        Raises:
            CalibrationError: of all the source's pictures, more than one in a hundred cannot be read; names some.
        """
        rows: list[NDArray[np.float32]] = []
        places = range(self.source.count) if places is None else places
        for decoded in read_ahead(self.source, places, self._prepare, ahead=size * AHEAD):
            if isinstance(decoded, Unreadable):
                self.seen.unreadable.append(decoded.reason)
                check_readable(self.seen.unreadable, self.source.count)
                continue
            self.seen.add(decoded.digest, decoded.correlation)
            rows.append(self.preprocess.normalise(decoded.pixels))
            if len(rows) == size:
                yield np.stack(rows)
                rows = []
        if rows:
            yield np.stack(rows)

    def _prepare(self, picture: Picture) -> _Prepared:
        header = f"{picture.mode} {picture.size}" if isinstance(picture, Image.Image) else f"{picture.shape}"
        digest = hashlib.sha256(header.encode())
        for strip in _strips(picture):
            digest.update(strip.tobytes())
        return _Prepared(self.preprocess.pixels(picture), digest.digest(), neighbour_correlation(picture))


def neighbour_correlation(picture: Picture) -> float:
    """Correlation of horizontally adjacent grey values: near 1 for pictures, near 0 for noise; 1 for a picture of one
    colour or one column."""
    # Sums of the pixels on the left of a pair, of those on the right, of their squares and of their products; of
    # differences from the first pixel, which are small where the picture varies little.
    sums, pairs, first = np.zeros(5), 0, None
    for strip in _strips(picture):
        grey = (
            np.asarray(strip.convert("L"), np.float32) if isinstance(strip, Image.Image) else strip.mean(2, np.float32)
        )
        first = grey[0, 0] if first is None else first
        left, right = (grey - first)[:, :-1], (grey - first)[:, 1:]
        each = (left, right, left * left, right * right, left * right)
        sums += [values.sum(dtype=np.float64) for values in each]
        pairs += left.size
    if not pairs:
        return 1.0
    mean = sums / pairs
    spread = mean[2:4] - mean[:2] ** 2
    if (spread <= ROUNDING * mean[2:4]).any():
        return 1.0
    return float((mean[4] - mean[0] * mean[1]) / np.sqrt(spread[0] * spread[1]))


def _smallest_two(digests: frozenset[bytes]) -> frozenset[bytes]:
    return frozenset(sorted(digests)[:2])


def _strips(picture: Picture) -> Iterator[Picture]:
    """The picture from top to bottom, in strips of some STRIP_PIXELS."""
    if isinstance(picture, Image.Image):
        rows = max(1, STRIP_PIXELS // picture.width)
        for top in range(0, picture.height, rows):
            yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))
    else:
        rows = max(1, STRIP_PIXELS // picture.shape[1])
        yield from np.split(picture, range(rows, len(picture), rows))
