"""Orders and choices of pictures that stand for the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def order_evenly(count: int, labels: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """The places 0 to `count` - 1 in random order, int64: from each class the same number first, as far as possible.

    Args:
        labels: class indices, int64 (count,), where they are known.
        seed: the same one gives the same order.
    """
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    if labels is None:
        return order
    classes = labels[order]
    # a picture's place among those of its class: the first of each class come first
    turn = np.empty(count, np.int64)
    for label in np.unique(classes):
        turn[classes == label] = np.arange((classes == label).sum())
    return order[np.argsort(turn, kind="stable")]


def spread_places(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the places 0 to `count` - 1, evenly from the first to the last: int64, ascending."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)
