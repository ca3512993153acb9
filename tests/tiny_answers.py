"""What the tiny model is fed, and its answers compared row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "input", "logits"
ROUNDING = 1e-5
"""Of the largest logit: what another order of summation, as another batch size brings, may change in FP32."""


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 1, 28, 28), np.float32)


def assert_same_rows(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal but for rounding, where rows themselves are far apart: a row in the wrong place is found."""
    largest = float(np.abs(expected).max())
    distances = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(expected)) * largest
    assert distances.min() > 100 * ROUNDING * largest
    np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING * largest)
