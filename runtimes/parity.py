"""Are these outputs the reference's? What is measured, and what is allowed.

Errors are taken relative to the largest reference logit: a ResNet's logits differ by orders of magnitude with its depth and
weights, so an absolute tolerance means nothing. A flip (another top class) counts against the agreement only where the
reference itself preferred its class by more than the precision's own error; all flips are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_SQNR_DB = 200.0
"""Reported for outputs that are equal to the last bit: JSON has no infinity."""
LARGEST_ERROR = float(np.finfo(np.float64).max)
"""Reported for outputs that are not finite, for the same reason."""


@dataclass(frozen=True)
class Budget:
    """What a precision may cost; None does not limit. Errors and margins are relative to the largest reference logit."""

    own_error: float
    max_relative_error: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    max_accuracy_drop: float | None = None

    def violations(self, measured: Comparison) -> tuple[str, ...]:
        """What is out of budget, in words; empty when all is inside."""
        if not measured.finite:
            return ("outputs that are not finite",)
        checks = (
            ("largest relative error", measured.max_relative_error, self.max_relative_error, "<=", ".2e"),
            ("top-1 agreement", measured.top1_agreement, self.min_agreement, ">=", ".2%"),
            ("worst cosine", measured.worst_cosine, self.min_cosine, ">=", ".5f"),
            ("SQNR in dB", measured.sqnr_db, self.min_sqnr_db, ">=", ".1f"),
        )
        return tuple(
            f"{name} {value:{form}}, budget {relation} {limit:{form}}"
            for name, value, limit, relation, form in checks
            if limit is not None and not (value <= limit if relation == "<=" else value >= limit)
        )


@dataclass(frozen=True)
class Flips:
    """Images whose top class changed: all of them, and those that count (reference margin above the precision's own error)."""

    total: int
    counted: int


@dataclass(frozen=True)
class Comparison:
    """One backend's outputs against the reference's.

    Attributes:
        ok: finite and inside the budget.
        max_relative_error, mean_relative_error, p99_relative_error: of all logits, relative to the largest reference logit.
        worst_cosine: the smallest cosine between an image's logits and the reference's.
        sqnr_db: signal to quantisation noise, 10 log10(sum of squares of the reference / of the difference), in dB.
        top1_agreement: 1 - counted flips / images.
        top5_overlap: how many of the reference's five top classes are among the backend's five, on average, 0..1.
    """

    ok: bool
    finite: bool
    max_relative_error: float
    mean_relative_error: float
    p99_relative_error: float
    worst_cosine: float
    sqnr_db: float
    top1_agreement: float
    top5_overlap: float
    flips: Flips
    violations: tuple[str, ...] = ()


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


def compare(reference: NDArray[Any], outputs: NDArray[Any], budget: Budget) -> Comparison:
    """Measure `outputs` against `reference`, both float (images, classes)."""
    if reference.shape != outputs.shape or reference.ndim != 2:
        raise ValueError(f"expected two arrays (images, classes) of one shape, got {reference.shape} and {outputs.shape}")
    if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
        worst = LARGEST_ERROR
        flips = Flips(len(reference), len(reference))
        whose = "a reference that is" if np.isfinite(outputs).all() else "outputs that are"
        return Comparison(False, False, worst, worst, worst, -1.0, -LARGEST_SQNR_DB, 0.0, 0.0, flips, (f"{whose} not finite",))
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    largest = float(np.abs(expected).max()) or 1.0
    errors = np.abs(got - expected) / largest
    flips = _flips(expected, got, budget.own_error * largest)
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
    violations = budget.violations(measured)
    return Comparison(**{**measured.__dict__, "ok": not violations, "violations": violations})


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


def _flips(expected: NDArray[Any], got: NDArray[Any], own_error: float) -> Flips:
    if expected.shape[1] == 1:
        return Flips(0, 0)
    flipped = expected.argmax(1) != got.argmax(1)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    return Flips(int(flipped.sum()), int((flipped & (first - second > own_error)).sum()))


def _cosines(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    both_zero = (np.abs(expected).max(1) == 0) & (np.abs(got).max(1) == 0)
    cosines: NDArray[Any] = np.where(both_zero, 1.0, (expected * got).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny))
    return cosines.clip(-1, 1)


def sqnr_db(expected: NDArray[Any], got: NDArray[Any]) -> float:
    signal, noise = float((expected**2).sum()), float(((got - expected) ** 2).sum())
    if noise == 0:
        return LARGEST_SQNR_DB
    return float(np.clip(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise), -LARGEST_SQNR_DB, LARGEST_SQNR_DB))


def _top_overlap(expected: NDArray[Any], got: NDArray[Any], top: int) -> float:
    def chosen(logits: NDArray[Any]) -> NDArray[Any]:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top]

    hits = (chosen(expected)[:, :, None] == chosen(got)[:, None, :]).any(2)
    return float(hits.mean())
