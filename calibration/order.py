"""An order of pictures of which every beginning stands for the whole."""

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
