"""Are these outputs the reference's? What is measured, and what is allowed.

Errors are taken relative to the largest reference logit: a ResNet's logits differ by orders of magnitude with its depth and
weights, so an absolute tolerance means nothing. A flip (another top class) counts against the agreement only where the
reference itself preferred its class by more than the precision's own error; all flips are reported.

Features (`--features`) have no classes: each output is measured on its own, relative to its own largest value, and the worst of them is held
against the budget; what it says of classes does not apply to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.budget import Budget
from runtimes.flips import Flips, flip_counts, flipped

LOGITS = "logits"
"""The one output of a classifier. A model with any other gives features."""
LARGEST_SQNR_DB = 200.0
"""Reported for outputs that are equal to the last bit: JSON has no infinity."""
LARGEST_ERROR = float(np.finfo(np.float64).max)
"""Reported for outputs that are not finite, for the same reason."""


@dataclass(frozen=True)
class Comparison:
    """One backend's outputs against the reference's.

    Attributes:
        ok: finite and inside the budget.
        max_relative_error, mean_relative_error, p99_relative_error: of all logits, relative to the largest reference logit.
        worst_cosine: the smallest cosine between an image's logits and the reference's.
        sqnr_db: signal to quantisation noise, 10 log10(sum of squares of the reference / of the difference), in dB.
        top1_agreement: 1 - counted flips / images; None for features.
        top5_overlap: how many of the reference's five top classes are among the backend's five, on average, 0..1; None for features.
        flips: None for features.
        outputs: of features, the same measures for each output; those above are the worst of them. Empty for a classifier.
    """

    ok: bool
    finite: bool
    max_relative_error: float
    mean_relative_error: float
    p99_relative_error: float
    worst_cosine: float
    sqnr_db: float
    top1_agreement: float | None
    top5_overlap: float | None
    flips: Flips | None
    violations: tuple[str, ...] = ()
    outputs: dict[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityReport:
    """The verdict over all backends: `ok` when every one is. Truth of the report is `ok`."""

    ok: bool
    images: int
    batches: tuple[int, ...]
    backends: dict[str, Comparison]
    budget: Budget = field(default=Budget(own_error=0.0))

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Accuracy:
    """Top-1 where labels are known, 0..1; `interval` is Wilson's 95 % interval of `top1`."""

    images: int
    reference_top1: float
    top1: float
    interval: tuple[float, float]


def is_classifier(outputs: Iterable[str]) -> bool:
    """Are these the output names of a classifier, rather than those of features?"""
    return tuple(outputs) == (LOGITS,)


def compare_outputs(reference: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], budget: Budget) -> Comparison:
    """Measure a model's outputs by name, those of a classifier or features, against the reference's."""
    return compare(reference[LOGITS], outputs[LOGITS], budget) if is_classifier(reference) else compare_features(reference, outputs, budget)


def compare(reference: NDArray[Any], outputs: NDArray[Any], budget: Budget) -> Comparison:
    """Measure `outputs` against `reference`, both float (images, classes)."""
    if reference.shape != outputs.shape or reference.ndim != 2:
        raise ValueError(f"expected two arrays (images, classes) of one shape, got {reference.shape} and {outputs.shape}")
    if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
        flips = Flips(len(reference), len(reference))
        return replace(_not_finite(outputs), top1_agreement=0.0, top5_overlap=0.0, flips=flips)
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    largest = float(np.abs(expected).max()) or 1.0
    errors = np.abs(got - expected) / largest
    flips = flip_counts(flipped(expected, got, budget.own_error))
    measured = Comparison(
        ok=True,
        finite=True,
        max_relative_error=float(errors.max()),
        mean_relative_error=float(errors.mean()),
        p99_relative_error=float(np.quantile(errors, 0.99)),
        worst_cosine=float(_cosines(expected, got).min()),
        sqnr_db=sqnr_db(expected, got),
        top1_agreement=1 - flips.counted / len(expected),
        top5_overlap=_top_overlap(expected, got, min(5, expected.shape[1])),
        flips=flips,
    )
    return _judged(measured, budget)


def compare_features(reference: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], budget: Budget) -> Comparison:
    """Measure features by name, each a float array (images, ...), against the reference's of the same names and shapes."""
    found = {name: _compare_feature(name, values, outputs[name], budget) for name, values in reference.items()}
    each = list(found.values())
    return Comparison(
        ok=all(one.ok for one in each),
        finite=all(one.finite for one in each),
        max_relative_error=max(one.max_relative_error for one in each),
        mean_relative_error=max(one.mean_relative_error for one in each),
        p99_relative_error=max(one.p99_relative_error for one in each),
        worst_cosine=min(one.worst_cosine for one in each),
        sqnr_db=min(one.sqnr_db for one in each),
        top1_agreement=None,
        top5_overlap=None,
        flips=None,
        violations=tuple(f"{name}: {said}" for name, one in found.items() for said in one.violations),
        outputs=found,
    )


def _compare_feature(name: str, reference: NDArray[Any], outputs: NDArray[Any], budget: Budget) -> Comparison:
    """One output. A stage has a million values an image: they stay in single precision, all but the sums."""
    if reference.shape != outputs.shape or reference.ndim < 2:
        raise ValueError(f"expected '{name}' as two arrays (images, ...) of one shape, got {reference.shape} and {outputs.shape}")
    if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
        return _not_finite(outputs)
    expected, got = (array.reshape(len(array), -1).astype(np.float32, copy=False) for array in (reference, outputs))
    largest = float(np.abs(expected).max()) or 1.0
    errors = np.abs(got - expected)
    worst_cosine, ratio = _cosine_and_sqnr(expected, got)
    measured = Comparison(
        ok=True,
        finite=True,
        max_relative_error=float(errors.max()) / largest,
        mean_relative_error=float(errors.mean(dtype=np.float64)) / largest,
        p99_relative_error=float(np.quantile(errors, 0.99)) / largest,
        worst_cosine=worst_cosine,
        sqnr_db=ratio,
        top1_agreement=None,
        top5_overlap=None,
        flips=None,
    )
    return _judged(measured, budget)


def _cosine_and_sqnr(expected: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    """The worst image's cosine and the signal-to-noise ratio in dB of two arrays (images, values), computed in double, one image at a time."""
    worst, signal, noise = 1.0, 0.0, 0.0
    for place in range(len(expected)):
        one, other = expected[place : place + 1].astype(np.float64), got[place : place + 1].astype(np.float64)
        worst = min(worst, float(_cosines(one, other)[0]))
        signal += float((one**2).sum())
        noise += float(((other - one) ** 2).sum())
    return worst, _decibels(signal, noise)


def _judged(measured: Comparison, budget: Budget) -> Comparison:
    violations = budget.violations(measured)
    return replace(measured, ok=not violations, violations=violations)


def _not_finite(outputs: NDArray[Any]) -> Comparison:
    """The outputs or, where those are finite, the reference holds NaN or infinity."""
    worst = LARGEST_ERROR
    whose = "a reference that is" if np.isfinite(outputs).all() else "outputs that are"
    return Comparison(False, False, worst, worst, worst, -1.0, -LARGEST_SQNR_DB, None, None, None, (f"{whose} not finite",))


def accuracy(reference: NDArray[Any], outputs: NDArray[Any], labels: NDArray[Any]) -> Accuracy:
    """Top-1 of the reference and of `outputs`, both (images, classes), for integer `labels` (images,)."""
    correct = int((outputs.argmax(1) == labels).sum())
    return Accuracy(len(labels), float((reference.argmax(1) == labels).mean()), correct / len(labels), wilson_interval(correct, len(labels)))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1)."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _cosines(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    both_zero = (np.abs(expected).max(1) == 0) & (np.abs(got).max(1) == 0)
    cosines: NDArray[Any] = np.where(both_zero, 1.0, (expected * got).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny))
    return cosines.clip(-1, 1)


def sqnr_db(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Signal to noise of two float arrays of one shape, in dB."""
    return _decibels(float((expected**2).sum()), float(((got - expected) ** 2).sum()))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return LARGEST_SQNR_DB
    return float(np.clip(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise), -LARGEST_SQNR_DB, LARGEST_SQNR_DB))


def _top_overlap(expected: NDArray[Any], got: NDArray[Any], top: int) -> float:
    def chosen(logits: NDArray[Any]) -> NDArray[Any]:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top]

    hits = (chosen(expected)[:, :, None] == chosen(got)[:, None, :]).any(2)
    return float(hits.mean())
