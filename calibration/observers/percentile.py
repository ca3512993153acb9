"""The magnitude below which a given percentage of the values lies (Wu et al. 2020, arXiv 2004.09602, section 5.1)."""

from __future__ import annotations

from functools import partial

import numpy as np

from calibration.histogram import Histogram
from calibration.observers import Observer

PERCENTILES = (99.9, 99.99, 99.999)


def percentile(histogram: Histogram, *, percent: float) -> float:
    """The upper end of the bin in which the share of values reaches `percent` (0..100); at most the largest value."""
    reached = np.cumsum(histogram.counts) >= percent / 100 * histogram.counts.sum()
    return min(histogram.largest, (int(np.argmax(reached)) + 1) * histogram.width)


OBSERVERS: dict[str, Observer] = {
    f"percentile-{percent}": partial(percentile, percent=percent) for percent in PERCENTILES
}
