"""Flips: the images that get another top class than the reference gave them, and which of those count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Flips:
    """How many images changed their top class: all, and those that count (margin above the precision's own error)."""

    total: int
    counted: int


@dataclass(frozen=True)
class Flip:
    """One image whose top class changed.

    Attributes:
        image: its place among the images.
        reference, got: the top class of the reference and of the backend (see `top_classes`).
        margin: the reference's gap between its own class and the backend's, relative to the largest reference logit
            without the mean over the classes: a number that is added to all logits makes no gap small.
        counted: the margin is larger than the precision's own error.
    """

    image: int
    reference: int
    got: int
    margin: float
    counted: bool


def centred(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits (images, classes) without their mean over the classes, which softmax ignores; a single logit as it is."""
    values = logits.astype(np.float64)
    return values if values.shape[1] == 1 else values - values.mean(1, keepdims=True)


def top_classes(logits: NDArray[Any]) -> NDArray[np.int64]:
    """The top class of each image, int64 (images,), for logits (images, classes). A single logit gives its sign, 1 or
    0."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.int64)
    return np.asarray(logits.argmax(1), np.int64)


def flips_between(reference: NDArray[Any], outputs: NDArray[Any], own_error: float) -> tuple[Flip, ...]:
    """The flips between two finite arrays of logits (images, classes), the largest margin first.

    A flip's margin is the reference's gap between its own class and the class that the backend chose. (Its gap to its
    second-best class would say nothing of a flip to the third.)

    Args:
        own_error: the precision's own error, relative as the margins are.
    """
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    largest = float(np.abs(centred(expected)).max()) or 1.0
    before, after = top_classes(expected), top_classes(got)
    places = np.flatnonzero(before != after)
    # A single logit is compared with zero, where its sign turns.
    chosen = expected[places, after[places]] if expected.shape[1] > 1 else 0.0
    margins = np.abs(expected[places].max(1) - chosen)
    found = [
        Flip(
            int(place),
            int(before[place]),
            int(after[place]),
            float(margin / largest),
            bool(margin > own_error * largest),
        )
        for place, margin in zip(places, margins, strict=True)
    ]
    return tuple(sorted(found, key=lambda flip: (-flip.margin, flip.image)))


def flip_counts(flips: Sequence[Flip]) -> Flips:
    """How many images flipped, and how many of them count."""
    return Flips(len(flips), sum(flip.counted for flip in flips))
