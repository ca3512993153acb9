"""The calibration images: decoded while the model runs, checked, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
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


class _Prepared(NamedTuple):
    """A picture's pixels, uint8 (height, width, channels), of the model's size; the sha256 of the whole picture; and
    its `neighbour_correlation`."""

    pixels: NDArray[np.uint8]
    digest: bytes
    correlation: float


@dataclass
class Sample:
    """Batches of a source's pictures, and what is learnt of the pictures as they are read.

    Attributes:
        images: pictures decoded so far.
        unreadable: why, for each picture that could not be read.
        fingerprint: sum of the pictures' sha256 digests modulo 2**256, in hex. It does not depend on their order, and
            the sum of two shards' is the whole's.
    """

    source: ImageSource
    preprocess: Preprocess
    images: int = 0
    unreadable: list[str] = field(default_factory=list)
    _digests: int = 0
    _distinct: set[bytes] = field(default_factory=set)
    _correlations: list[float] = field(default_factory=list)

    def batches(self, size: int, on_image: Callable[[], None] = lambda: None) -> Iterator[NDArray[np.float32]]:
        """Preprocessed batches, float32 (size, channels, height, width), of which the last may be smaller.

        Decoding runs ahead in threads.

        Raises:
            CalibrationError: more than one picture in a hundred cannot be read; names some.
        """
        rows: list[NDArray[np.float32]] = []
        for decoded in read_ahead(self.source, range(self.source.count), self._prepare, ahead=size * AHEAD):
            on_image()
            if isinstance(decoded, Unreadable):
                self.unreadable.append(decoded.reason)
                check_readable(self.unreadable, self.source.count)
                continue
            pixels, digest, correlation = decoded
            self.images += 1
            self._digests = (self._digests + int.from_bytes(digest, "big")) % (1 << DIGEST_BITS)
            self._distinct.add(digest)
            self._correlations.append(correlation)
            rows.append(self.preprocess.normalise(pixels))
            if len(rows) == size:
                yield np.stack(rows)
                rows = []
        if rows:
            yield np.stack(rows)

    @property
    def fingerprint(self) -> str:
        return f"{self._digests:0{DIGEST_BITS // 4}x}"

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
        if self.images > 1 and len(self._distinct) == 1:
            raise CalibrationError(
                f"all {self.images} calibration images are one picture repeated; give images like those the model will "
                "see"
            )
        if np.median(self._correlations) < NOISE_CORRELATION:
            raise CalibrationError(
                "the calibration images look like random noise (neighbouring pixels are unrelated); give real images"
            )

    def _prepare(self, picture: Picture) -> _Prepared:
        header = f"{picture.mode} {picture.size}" if isinstance(picture, Image.Image) else f"{picture.shape}"
        digest = hashlib.sha256(header.encode())
        digest.update(picture.tobytes())
        return _Prepared(self.preprocess.pixels(picture), digest.digest(), neighbour_correlation(picture))


def neighbour_correlation(picture: Picture) -> float:
    """Correlation of horizontally adjacent grey values: near 1 for pictures, near 0 for noise; 1 for a picture of one
    colour or one column."""
    grey = (
        np.asarray(picture.convert("L"), np.float32)
        if isinstance(picture, Image.Image)
        else picture.mean(2, np.float32)
    )
    if grey.shape[1] < 2:
        return 1.0
    left, right = grey[:, :-1].ravel(), grey[:, 1:].ravel()
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left * left).sum() * (right * right).sum()))
    return float((left * right).sum()) / scale if scale > 0 else 1.0
