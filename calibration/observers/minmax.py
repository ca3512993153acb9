"""The largest magnitude: nothing is clipped."""

from __future__ import annotations

from calibration.histogram import Histogram


def largest(histogram: Histogram) -> float:
    """The largest magnitude seen, exact."""
    return histogram.largest


OBSERVERS = {"minmax": largest}
