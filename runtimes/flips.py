"""Which images changed their class, and how much that means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Flips:
    """Images whose top class changed: all of them, and those that count (reference margin above the precision's own error)."""

    total: int
    counted: int


@dataclass(frozen=True)
class Flip:
    """One image whose top class changed.

    Attributes:
        image: its place among the images.
        reference, got: the top class of the reference and of the backend.
        margin: by how much the reference preferred its class to the second, relative to the largest reference logit.
        counted: the margin is larger than the precision's own error.
    """

    image: int
    reference: int
    got: int
    margin: float
    counted: bool


def flipped(reference: NDArray[Any], outputs: NDArray[Any], own_error: float) -> tuple[Flip, ...]:
    """The flips between two finite arrays (images, classes), those of the largest margin first.

    Args:
        own_error: of the precision, relative to the largest reference logit.
    """
    if reference.shape[1] == 1:
        return ()
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    largest = float(np.abs(expected).max()) or 1.0
    places = np.flatnonzero(expected.argmax(1) != got.argmax(1))
    second, first = np.partition(expected[places], -2, axis=1)[:, -2:].T
    margins = first - second
    found = [
        Flip(int(place), int(expected[place].argmax()), int(got[place].argmax()), float(margin / largest), bool(margin > own_error * largest))
        for place, margin in zip(places, margins, strict=True)
    ]
    return tuple(sorted(found, key=lambda flip: (-flip.margin, flip.image)))


def flip_counts(flips: tuple[Flip, ...]) -> Flips:
    """How many images flipped, and how many of them count; one may be there several times, with another class at another batch."""
    return Flips(len({flip.image for flip in flips}), len({flip.image for flip in flips if flip.counted}))
