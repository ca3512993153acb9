"""Compare a backend's outputs with the reference's, and judge them against a budget.

Errors are taken relative to the largest reference logit: a ResNet's logits differ by orders of magnitude with its depth
and weights, so an absolute tolerance means nothing. A flip (another top class) counts against the agreement only where
the reference itself preferred its class to the one chosen by more than the precision's own error; all flips are
reported.

SQNR and cosine are taken of logits without their mean over the classes: softmax ignores it, and of a few classes it can
be all that there is.

An image counts once, however many batch sizes it is run at: averages and agreement are those of the largest batch,
which sees every image. The outputs of smaller batches only enter the worst values (largest error, worst cosine, not
finite) and `max_batch_difference`, the largest difference between two batch sizes.

Features (`--features`) have no classes: each output is measured on its own, relative to its own largest value, and the
worst is judged; limits about classes do not apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.parity.budget import Budget
from runtimes.parity.flips import Flips, centred, flip_counts, flips_between
from runtimes.parity.limits import Limit
from runtimes.parity.measures import LARGEST_ERROR, LARGEST_SQNR_DB, Comparison, _decibels, sqnr_db

LOGITS, PROBABILITIES = "logits", "probabilities"
"""The one output of a classifier: the second where its Softmax, or Sigmoid, is kept. A model with any other gives
features."""
SAID = ("finite", "ok")
"""A limit and verdict that `Comparison.finite` says already."""
Repeated = Sequence[tuple[NDArray[np.int64], NDArray[Any]]]
"""One output at other batch sizes: places of images, int64 (n,), and the output for them, (n, ...)."""


@dataclass(frozen=True)
class OtherBatch:
    """Outputs for some of the images at another batch size.

    Attributes:
        places: which images, int64 (n,).
        outputs: by name, each (n, ...).
    """

    places: NDArray[np.int64]
    outputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ParityReport:
    """The verdict over all backends: `ok` when every backend is within budget. `bool(report)` is `ok`.

    What decided it stands in words in `Comparison.violations`, `undecided` and `kept`.
    """

    ok: bool
    images: int
    batches: tuple[int, ...]
    backends: dict[str, Comparison]
    budget: Budget = field(default=Budget(own_error=0.0))

    def __bool__(self) -> bool:
        return self.ok


def is_classifier(outputs: Iterable[str]) -> bool:
    """Are these the output names of a classifier, rather than those of features?"""
    return tuple(outputs) in ((LOGITS,), (PROBABILITIES,))


def class_scores(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The one output of a classifier, (images, classes)."""
    (scores,) = outputs.values()
    return scores


def tensor_sqnr_db(name: str, expected: NDArray[Any], got: NDArray[Any]) -> float:
    """The SQNR in dB of one tensor of a network; logits (images, classes) are taken without their mean."""
    return sqnr_db(centred(expected), centred(got)) if name == LOGITS else sqnr_db(expected, got)


def compare_outputs(
    reference: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    budget: Budget,
    again: Sequence[OtherBatch] = (),
) -> Comparison:
    """Compare a model's outputs, by name, with the reference's: logits or features. `again`: outputs at other batch
    sizes."""
    if is_classifier(reference):
        (name,) = reference
        return compare(reference[name], outputs[name], budget, _of_output(name, again))
    return compare_features(reference, outputs, budget, again)


def compare(reference: NDArray[Any], outputs: NDArray[Any], budget: Budget, again: Repeated = ()) -> Comparison:
    """Compare logits with the reference's, both float (images, classes).

    Args:
        again: logits of some images at other batch sizes.

    Raises:
        ValueError: the two are not of one shape (images, classes).
    """
    if reference.shape != outputs.shape or reference.ndim != 2:
        raise ValueError(
            f"expected two arrays (images, classes) of one shape, got {reference.shape} and {outputs.shape}"
        )
    if not _all_finite(reference, outputs, again):
        flips = Flips(len(reference), len(reference))
        return replace(_not_finite_result(reference), top1_agreement=0.0, top5_overlap=0.0, flips=flips)
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    largest = float(np.abs(expected).max()) or 1.0
    errors = np.abs(got - expected) / largest
    worst_cosine, ratio = _cosine_and_sqnr(centred(expected), centred(got))
    flips = flip_counts(flips_between(expected, got, budget.own_error))
    measured = Comparison(
        ok=True,
        finite=True,
        max_relative_error=float(errors.max()),
        mean_relative_error=float(errors.mean()),
        p99_relative_error=float(np.quantile(errors, 0.99)),
        worst_cosine=worst_cosine,
        sqnr_db=ratio,
        top1_agreement=1 - flips.counted / len(expected),
        top5_overlap=_top_overlap(expected, got, min(5, expected.shape[1])),
        flips=flips,
        images=len(expected),
    )
    cosines = [_cosine_and_sqnr(centred(expected[places]), centred(values))[0] for places, values in again]
    return _judge(_with_other_batches(measured, expected, got, again, cosines), budget)


def compare_features(
    reference: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    budget: Budget,
    again: Sequence[OtherBatch] = (),
) -> Comparison:
    """Compare features, by name each a float array (images, ...), with the reference's of the same names and shapes."""
    found = {
        name: _compare_feature(name, values, outputs[name], budget, _of_output(name, again))
        for name, values in reference.items()
    }
    each = list(found.values())
    differences = [one.max_batch_difference for one in each if one.max_batch_difference is not None]
    measured = Comparison(
        ok=all(one.ok for one in each),
        finite=all(one.finite for one in each),
        max_relative_error=max(one.max_relative_error for one in each),
        mean_relative_error=max(one.mean_relative_error for one in each),
        p99_relative_error=max(one.p99_relative_error for one in each),
        worst_cosine=min((one.worst_cosine for one in each if one.worst_cosine is not None), default=None),
        sqnr_db=min(one.sqnr_db for one in each),
        top1_agreement=None,
        top5_overlap=None,
        flips=None,
        violations=tuple(f"{name}: {said}" for name, one in found.items() for said in one.violations),
        outputs=found,
        max_batch_difference=max(differences, default=None),
        images=each[0].images,
    )
    return _judge(measured, budget)


def _compare_feature(
    name: str, reference: NDArray[Any], outputs: NDArray[Any], budget: Budget, again: Repeated
) -> Comparison:
    """One output. A stage has a million values an image: they stay in single precision, all but the sums."""
    if reference.shape != outputs.shape or reference.ndim < 2:
        raise ValueError(
            f"expected '{name}' as two arrays (images, ...) of one shape, got {reference.shape} and {outputs.shape}"
        )
    if not _all_finite(reference, outputs, again):
        return _not_finite_result(reference)
    expected, got = _rows(reference), _rows(outputs)
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
        images=len(expected),
    )
    others = [(places, _rows(values)) for places, values in again]
    cosines = [_cosine_and_sqnr(expected[places], values)[0] for places, values in others]
    return _judge(_with_other_batches(measured, expected, got, others, cosines), budget)


def _of_output(name: str, again: Sequence[OtherBatch]) -> list[tuple[NDArray[np.int64], NDArray[Any]]]:
    return [(one.places, one.outputs[name]) for one in again]


def _rows(values: NDArray[Any]) -> NDArray[np.float32]:
    """An output as (images, values) in single precision."""
    return values.reshape(len(values), -1).astype(np.float32, copy=False)


def _all_finite(reference: NDArray[Any], outputs: NDArray[Any], again: Repeated) -> bool:
    return all(np.isfinite(values).all() for values in (reference, outputs, *(values for _, values in again)))


def _with_other_batches(
    measured: Comparison,
    expected: NDArray[Any],
    got: NDArray[Any],
    again: Repeated,
    cosines: Sequence[float | None],
) -> Comparison:
    """Include the outputs at other batch sizes: the worst values, and the largest difference from `got`.

    All arrays are (images, values); `cosines` are the worst ones of each of `again`.
    """
    if not again:
        return measured
    largest = float(np.abs(expected).max()) or 1.0
    errors = [float(np.abs(values - expected[places]).max()) / largest for places, values in again]
    differences = [float(np.abs(values - got[places]).max()) / largest for places, values in again]
    return replace(
        measured,
        max_relative_error=max(measured.max_relative_error, *errors),
        worst_cosine=min((one for one in (measured.worst_cosine, *cosines) if one is not None), default=None),
        max_batch_difference=max(differences),
    )


def _cosine_and_sqnr(expected: NDArray[Any], got: NDArray[Any]) -> tuple[float | None, float]:
    """The worst image's cosine (None for a single value) and the SQNR in dB of two arrays (images, values).

    Computed in double precision, one image at a time.
    """
    worst, signal, noise = 1.0, 0.0, 0.0
    for place in range(len(expected)):
        one, other = expected[place : place + 1].astype(np.float64), got[place : place + 1].astype(np.float64)
        worst = min(worst, float(_cosines(one, other)[0]))
        signal += float((one**2).sum())
        noise += float(((other - one) ** 2).sum())
    return (None if expected.shape[1] == 1 else worst), _decibels(signal, noise)


def judged(measured: Comparison, limits: Sequence[Limit], *, must_decide: bool = False) -> Comparison:
    """The comparison with the verdicts on `limits`; where it `must_decide`, one that is undecided is not `ok`."""

    def texts(verdict: str) -> tuple[str, ...]:
        return tuple(limit.text for limit in limits if limit.verdict == verdict and (limit.name, verdict) != SAID)

    violations, undecided = texts("broken"), texts("undecided")
    ok = not violations and not (must_decide and undecided)
    return replace(measured, ok=ok, violations=violations, undecided=undecided, kept=texts("ok"))


def _judge(measured: Comparison, budget: Budget) -> Comparison:
    return judged(measured, budget.limits(measured))


def _not_finite_result(reference: NDArray[Any]) -> Comparison:
    """The result where the reference or, if that is finite, an output holds NaN or infinity."""
    worst = LARGEST_ERROR
    whose = "outputs that are" if np.isfinite(reference).all() else "a reference that is"
    return Comparison(
        False,
        False,
        worst,
        worst,
        worst,
        -1.0,
        -LARGEST_SQNR_DB,
        None,
        None,
        None,
        (f"{whose} not finite",),
        images=len(reference),
    )


def _cosines(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    both_zero = (np.abs(expected).max(1) == 0) & (np.abs(got).max(1) == 0)
    cosines: NDArray[Any] = np.where(
        both_zero, 1.0, (expected * got).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    )
    return cosines.clip(-1, 1)


def _top_overlap(expected: NDArray[Any], got: NDArray[Any], top: int) -> float:
    def chosen(logits: NDArray[Any]) -> NDArray[Any]:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top]

    hits = (chosen(expected)[:, :, None] == chosen(got)[:, None, :]).any(2)
    return float(hits.mean())
