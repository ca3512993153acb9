"""Pictures of noise, and steps that leave their values as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.preprocess import Preprocess

PLAIN: dict[str, Any] = {
    "resize": None,
    "crop": (4, 6),
    "interpolation": "bilinear",
    "antialias": True,
    "mean": (0.0,) * 3,
    "std": (1.0,) * 3,
}


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng([height, width]).integers(0, 256, shape, np.uint8)


def plain(**changes: Any) -> Preprocess:
    return Preprocess(**{**PLAIN, **changes})


def pixels(array: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The grey levels (height, width, channels) behind an array of mean 0 and standard deviation 1."""
    return (array * 255).round().astype(np.uint8).transpose(1, 2, 0)
