"""The threshold with the smallest mean squared quantization error (Nagel et al. 2021, arXiv 2106.08295, section
3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.histogram import Histogram

LEVELS = 127
CANDIDATES = 256


def mse(histogram: Histogram) -> float:
    """The candidate threshold that minimises sum(counts x (x - quantized x)^2), x at the bins' centres."""
    if histogram.largest == 0:
        return 0.0
    used = histogram.used
    centres, counts = histogram.centres[:used], histogram.counts[:used].astype(np.float64)
    candidates = histogram.largest * np.arange(CANDIDATES // 8, CANDIDATES + 1) / CANDIDATES
    errors = [_error(centres, counts, threshold / LEVELS) for threshold in candidates]
    return float(candidates[int(np.argmin(errors))])


def _error(centres: NDArray[np.float64], counts: NDArray[np.float64], scale: float) -> float:
    quantized = np.minimum(np.rint(centres / scale), LEVELS) * scale
    return float((counts * (centres - quantized) ** 2).sum())


OBSERVERS = {"mse": mse}
