"""What a backend is to answer, and its answers held against the reference's: images, outputs, limits, flips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.budget import Budget, Limit
from runtimes.flips import Flip, Flips, flip_counts, flipped
from runtimes.parity import LOGITS, Accuracy, ParityReport, accuracy, compare_outputs, is_classifier
from runtimes.specs import BatchRange

LOWEST_DECADE, HIGHEST_DECADE, BINS_A_DECADE = -9, 1, 4


@dataclass(frozen=True)
class Evidence:
    """Inputs as the model takes them, (images, ...); the reference's outputs for them by name; labels int64 (images,) where they are known.

    Attributes:
        judge_accuracy: hold the accuracy against its limit however few the labels are.
    """

    inputs: NDArray[Any]
    outputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    judge_accuracy: bool = False


@dataclass(frozen=True)
class ErrorHistogram:
    """How many output values are off by how much.

    Attributes:
        decades: edges of the bins, log10 of the error relative to the largest reference value; what is smaller or larger counts in the end bins.
        counts: one fewer than the edges; values equal to the last bit are in `exact` alone.
    """

    decades: tuple[float, ...]
    counts: tuple[int, ...]
    exact: int


@dataclass(frozen=True)
class Answered:
    """One backend's answers to the evidence.

    Attributes:
        report: of this backend alone.
        limits: each limit of the budget that applies, and whether it is kept.
        flips: the images whose class changed, at whichever batch, the largest margin first; none for features.
        errors: None where an output is not finite.
        accuracy: None where labels are not known.
    """

    report: ParityReport
    limits: tuple[Limit, ...]
    flips: tuple[Flip, ...]
    errors: ErrorHistogram | None
    accuracy: Accuracy | None

    @property
    def ok(self) -> bool:
        return self.report.ok


def answered(evidence: Evidence, name: str, runtime: Runtime, budget: Budget, batch: BatchRange) -> Answered:
    """Feed the evidence at the smallest, the middle and the largest batch, all images at the largest; `name` is the backend's in the report."""
    places, parts = [], []
    for rows, kept in _batches(len(evidence.inputs), batch):
        outputs = runtime.run({runtime.inputs[0].name: evidence.inputs[rows]})
        places.append(rows[:kept])
        parts.append({name: outputs[name][:kept] for name in evidence.outputs})
    images = np.concatenate(places)
    expected = {output: values[images] for output, values in evidence.outputs.items()}
    got = {output: np.concatenate([part[output] for part in parts]) for output in evidence.outputs}
    compared = compare_outputs(expected, got, budget)
    measured: Accuracy | None = None
    flips: tuple[Flip, ...] = ()
    if is_classifier(evidence.outputs):
        if evidence.labels is not None:  # the largest batch comes last, and covers every image once
            measured = accuracy(evidence.outputs[LOGITS], got[LOGITS][-len(evidence.inputs) :], evidence.labels)
        if compared.finite:
            flips = _once_each(flipped(expected[LOGITS], got[LOGITS], budget.own_error), images)
        # Of images, where `compared` has seen each of them at several batches.
        compared = replace(compared, flips=flip_counts(flips) if compared.finite else Flips(len(evidence.inputs), len(evidence.inputs)))
    limits = budget.limits(compared, measured, however_few=evidence.judge_accuracy)
    report = ParityReport(all(limit.ok for limit in limits), len(evidence.inputs), batch.checked, {name: compared}, budget)
    return Answered(report, limits, flips, error_histogram(expected, got) if compared.finite else None, measured)


def error_histogram(reference: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> ErrorHistogram:
    """The errors of all finite outputs, each relative to its own output's largest reference value."""
    edges = np.linspace(LOWEST_DECADE, HIGHEST_DECADE, (HIGHEST_DECADE - LOWEST_DECADE) * BINS_A_DECADE + 1)
    counts, exact = np.zeros(len(edges) - 1, np.int64), 0
    for name, values in reference.items():
        largest = float(np.abs(values).max()) or 1.0
        errors = np.abs(outputs[name] - values).ravel() / largest
        exact += int((errors == 0).sum())
        decades = np.log10(errors[errors > 0]).clip(LOWEST_DECADE, HIGHEST_DECADE)
        counts += np.histogram(decades, edges)[0]
    return ErrorHistogram(tuple(map(float, edges)), tuple(map(int, counts)), exact)


def _batches(count: int, batch: BatchRange) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Places of full batches, and how many of each are asked for: a batch that the images do not fill holds some of them twice."""
    for size in batch.checked:
        wanted = count if size == batch.max else min(size, count)
        for start in range(0, wanted, size):
            yield np.arange(start, start + size) % count, min(size, wanted - start)


def _once_each(flips: tuple[Flip, ...], places: NDArray[Any]) -> tuple[Flip, ...]:
    """The flips by image in place of row, each image with one other class once."""
    found: dict[tuple[int, int], Flip] = {}
    for flip in flips:
        image = int(places[flip.image])
        found.setdefault((image, flip.got), Flip(image, flip.reference, flip.got, flip.margin, flip.counted))
    return tuple(found.values())
