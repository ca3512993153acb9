"""A histogram of magnitudes whose range grows with the data, and whose counts do not depend on batches or shards."""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import CalibrationError

BINS = 2048
SAMPLES = 1 << 16
SMALLEST_EXPONENT, LARGEST_EXPONENT = -126, 128
"""The exponents of the smallest normal float32, and of the power of two above the largest."""
MOST_COUNTED = 1 << 53
"""The largest sum of counts: up to it, they add up exactly in float64, too."""


@dataclass
class Histogram:
    """Counts of |x| in BINS equal bins over [0, 2**exponent), the smallest such range that holds every value.

    A bin's width is a power of two, so a value's bin is exact in floating point, and when the range doubles, two bins
    become one: the counts are those that one pass with the final range would give. So batches may be cut and ordered at
    will, and the histograms of two shards add up to exactly the whole's.

    Of an image with more than SAMPLES values, every second, third, ... one is counted, by its place in the image (see
    `sampling_step`): counting all ten million activations of a ResNet-50 takes longer than computing them. The largest
    magnitude is that of all values.

    Attributes:
        exponent: the range's upper end is 2**exponent.
        counts: int64 (BINS,).
        largest: the largest magnitude seen, exact.
    """

    exponent: int = SMALLEST_EXPONENT
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    largest: float = 0.0

    def update(self, values: NDArray[np.floating[Any]], name: str) -> None:
        """Count `values`, float32 (images, ...); `name` is their tensor's.

        Raises:
            CalibrationError: a value is NaN or infinite; names the tensor.
        """
        low, high = float(values.min()), float(values.max())
        largest = max(-low, high)
        if not math.isfinite(largest):
            raise CalibrationError(not_finite_text(name))
        self._grow(exponent_above(largest))
        self.largest = max(self.largest, largest)
        rows = values.reshape(len(values), -1)
        self.counts += _counts(rows[:, :: sampling_step(rows.shape[1])], self.exponent)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both data together, a new one."""
        both = Histogram(self.exponent, self.counts.copy(), max(self.largest, other.largest))
        both._grow(other.exponent)
        widened = Histogram(other.exponent, other.counts.copy())
        widened._grow(both.exponent)
        both.counts += widened.counts
        return both

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * np.float64(self.width)

    @property
    def width(self) -> float:
        """A bin's width."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def used(self) -> int:
        """How many bins there are up to the last one that is not empty."""
        filled = np.flatnonzero(self.counts)
        return int(filled[-1]) + 1 if len(filled) else 0

    def _grow(self, exponent: int) -> None:
        while self.exponent < exponent:
            if not self.counts.any():
                self.exponent = exponent
                return
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.exponent += 1

    def text(self) -> str:
        """The counts as compressed text, for JSON."""
        return base64.b64encode(zlib.compress(self.counts.astype("<i8").tobytes(), 9)).decode()

    @classmethod
    def from_text(cls, exponent: int, text: str, largest: float) -> Histogram:
        """The histogram whose counts `text()` gave.

        Raises:
            ValueError: the text is damaged.
        """
        expected = BINS * np.dtype("<i8").itemsize
        unpacker = zlib.decompressobj()
        try:  # no further than a byte beyond what is expected: a few kilobytes may unpack to gigabytes
            unpacked = unpacker.decompress(base64.b64decode(text, validate=True), expected + 1)
        except zlib.error as error:
            raise ValueError(f"a histogram's counts are damaged: {error}") from error
        if len(unpacked) != expected or not unpacker.eof:
            raise ValueError(
                f"expected a histogram of {BINS} counts, got {'more' if len(unpacked) > expected else 'fewer'}"
            )
        counts = np.frombuffer(unpacked, "<i8").astype(np.int64)
        if counts.min() < 0 or counts.sum(dtype=np.float64) > MOST_COUNTED:
            raise ValueError("a histogram's counts are negative, or beyond what can be added up")
        if not SMALLEST_EXPONENT <= exponent <= LARGEST_EXPONENT:
            raise ValueError(
                f"expected a histogram's exponent from {SMALLEST_EXPONENT} to {LARGEST_EXPONENT}, got {exponent}"
            )
        return cls(exponent, counts, largest)


def _counts(values: NDArray[np.floating[Any]], exponent: int) -> NDArray[np.int64]:
    """How many of the magnitudes are in each of BINS equal bins over [0, 2**exponent), int64 (BINS,).

    Values are turned into numbers of bins by powers of two, which is exact: in two steps, since a single power may be
    beyond float32. What underflows is in the first bin.
    """
    power = BINS.bit_length() - 1 - exponent
    scaled = (values * np.float32(2.0 ** (power // 2))).ravel()
    scaled *= np.float32(2.0 ** (power - power // 2))
    np.abs(scaled, out=scaled)
    return np.bincount(scaled.astype(np.int32), minlength=BINS)


def sampling_step(values: int) -> int:
    """Every how many values one is counted, of an image of `values` (channels x height x width): the smallest step that
    leaves about SAMPLES of them and has no common divisor with their number.

    So it has none with the width or the height, and all columns, rows and places of a plane are visited equally often.
    A step of 7 over planes of 28 columns visited 4 of them, and the border, where padding makes values differ, had 25 %
    of the samples where 3.6 % is fair.
    """
    return next(step for step in itertools.count(max(1, values // SAMPLES)) if math.gcd(step, values) == 1)


def not_finite_text(name: str) -> str:
    """The message about a tensor that has no range."""
    return f"'{name}' holds NaN or infinite values on the calibration images; check the weights and the normalisation"


def exponent_above(value: float) -> int:
    """The smallest e with value < 2**e, but at least SMALLEST_EXPONENT."""
    return max(SMALLEST_EXPONENT, math.frexp(value)[1]) if value > 0 else SMALLEST_EXPONENT
