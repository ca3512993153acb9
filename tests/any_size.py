"""What the tests of `--uint8-input full` share: bundles, noisy pictures, and their preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtimes import Bundle
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 2, 4)


def preprocess(
    resize: int | tuple[int, int] | None = 32, interpolation: str = "bilinear", channels: int = 3, **changes: Any
) -> Preprocess:
    made = Preprocess(
        resize, (28, 24), interpolation, True, (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    )
    return replace(made, **changes)


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    """Each value is 0, 255 or any other: sums are as far from the middle as they can be."""
    chance = np.random.default_rng([height, width])
    levels = np.where(
        chance.random((height, width, channels)) < 0.5, chance.choice([0, 255], (height, width, channels)), 0
    )
    values = np.where(
        chance.random((height, width, channels)) < 0.5, levels, chance.integers(0, 256, (height, width, channels))
    )
    return Image.fromarray(values.astype(np.uint8) if channels > 1 else values[..., 0].astype(np.uint8))


@pytest.fixture(name="bundles")
def bundles_fixture(shipped_bundle: Any) -> Callable[[str], Bundle]:
    """The shipped ResNet-20 that takes pictures of any size."""
    return partial(shipped_bundle, uint8="full")
