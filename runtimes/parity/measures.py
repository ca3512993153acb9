"""What a parity check measures of a backend: errors, agreement, accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.parity.flips import Flips, top_classes
from runtimes.parity.intervals import wilson_interval

LARGEST_SQNR_DB = 200.0
"""Stands for infinity, which JSON lacks: outputs that are equal to the last bit."""
LARGEST_ERROR = float(np.finfo(np.float64).max)
"""Likewise, for outputs that are not finite."""


@dataclass(frozen=True)
class Comparison:
    """How one backend's outputs compare with the reference's.

    Attributes:
        ok: finite and inside the budget; also decided, where that was asked for.
        max_relative_error, mean_relative_error, p99_relative_error: of all logits, relative to the largest reference
            logit.
        worst_cosine: the smallest cosine between an image's logits and the reference's, both without their mean over
            the classes (see `flips.centred`); None for a single logit, which has no direction.
        sqnr_db: signal to quantization noise, 10 log10(sum of squares of the reference / of the difference), in dB;
            of logits without their mean over the classes.
        top1_agreement: 1 - counted flips / images; None for features.
        top5_overlap: how many of the reference's five top classes are among the backend's five, on average, 0..1; None
            for features.
        flips: None for features.
        violations, undecided, kept: the limits that are broken, those that too few images leave undecided, and those
            that are kept, in words.
        outputs: of features, the same measures for each output; those above are the worst of them. Empty for a
            classifier.
        max_batch_difference: the largest difference between one image's outputs at two batch sizes, relative as the
            errors are; None where only one size was run, or an output is not finite.
        images: how many were compared; None where an older version wrote it.
    """

    ok: bool
    finite: bool
    max_relative_error: float
    mean_relative_error: float
    p99_relative_error: float
    worst_cosine: float | None
    sqnr_db: float
    top1_agreement: float | None
    top5_overlap: float | None
    flips: Flips | None
    violations: tuple[str, ...] = ()
    outputs: dict[str, Comparison] = field(default_factory=dict)
    max_batch_difference: float | None = None
    images: int | None = None
    undecided: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accuracy:
    """Top-1 where labels are known, 0..1.

    Attributes:
        interval: Wilson's 95 % interval of `top1`.
        lost, gained: images that only the reference, and only the backend, has right; None where an older version
            wrote it.
    """

    images: int
    reference_top1: float
    top1: float
    interval: tuple[float, float]
    lost: int | None = None
    gained: int | None = None


def accuracy(reference: NDArray[Any], outputs: NDArray[Any], labels: NDArray[Any]) -> Accuracy:
    """Top-1 of the reference and of `outputs`, both (images, classes), for integer `labels` (images,)."""
    before, after = top_classes(reference) == labels, top_classes(outputs) == labels
    images, correct = len(labels), int(after.sum())
    return Accuracy(
        images=images,
        reference_top1=int(before.sum()) / images,
        top1=correct / images,
        interval=wilson_interval(correct, images),
        lost=int((before & ~after).sum()),
        gained=int((after & ~before).sum()),
    )


def sqnr_db(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Signal-to-noise ratio of two float arrays of one shape, in dB."""
    return _decibels(float((expected**2).sum()), float(((got - expected) ** 2).sum()))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return LARGEST_SQNR_DB
    return float(
        np.clip(10 * np.log10(max(signal, float(np.finfo(np.float64).tiny)) / noise), -LARGEST_SQNR_DB, LARGEST_SQNR_DB)
    )
