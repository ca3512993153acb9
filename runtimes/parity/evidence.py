"""What a backend is to answer, and its answers held against the reference's: images, outputs, limits, flips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.parity.budget import Budget, Limit
from runtimes.parity.compare import LOGITS, OtherBatch, ParityReport, accuracy, compare_outputs, is_classifier
from runtimes.parity.flips import Flip, flips_between
from runtimes.parity.measures import Accuracy
from runtimes.specs import BatchRange

LOWEST_DECADE, HIGHEST_DECADE, BINS_A_DECADE = -9, 1, 4


@dataclass(frozen=True)
class Evidence:
    """Inputs as the model takes them, (images, ...); the reference's outputs for them by name; labels int64 (images,)
    where they are known.

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
        decades: edges of the bins, log10 of the error relative to the largest reference value; what is smaller or
            larger counts in the end bins.
        counts: one fewer than the edges; values equal to the last bit are in `exact` alone.
    """

    decades: tuple[float, ...]
    counts: tuple[int, ...]
    exact: int


@dataclass(frozen=True)
class BackendParity:
    """One backend's answers to the evidence.

    Attributes:
        report: of this backend alone.
        limits: each limit of the budget that applies, and whether it is kept.
        flips: the images whose class changed, the largest margin first; none for features.
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


def compare_backend(
    evidence: Evidence, name: str, runtime: Runtime, budget: Budget, batch: BatchRange
) -> BackendParity:
    """Feed the evidence at the smallest, the middle and the largest batch, all images at the largest; `name` is the
    backend's in the report.

    The largest batch is what is measured, since it sees every image, and each of them once; of the others the worst
    counts (see `runtimes.parity.compare`).
    """
    count = len(evidence.inputs)
    *smaller, largest = batch.proof_sizes
    again = [
        OtherBatch(np.arange(min(size, count)), _asked(evidence, runtime, size, min(size, count))) for size in smaller
    ]
    got = _asked(evidence, runtime, largest, count)
    compared = compare_outputs(evidence.outputs, got, budget, again)
    measured: Accuracy | None = None
    flips: tuple[Flip, ...] = ()
    if is_classifier(evidence.outputs):
        if evidence.labels is not None:
            measured = accuracy(evidence.outputs[LOGITS], got[LOGITS], evidence.labels)
        if compared.finite:
            flips = flips_between(evidence.outputs[LOGITS], got[LOGITS], budget.own_error)
    limits = budget.limits(compared, measured, however_few=evidence.judge_accuracy)
    report = ParityReport(all(limit.ok for limit in limits), count, batch.proof_sizes, {name: compared}, budget)
    return BackendParity(
        report, limits, flips, error_histogram(evidence.outputs, got) if compared.finite else None, measured
    )


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


def _asked(evidence: Evidence, runtime: Runtime, size: int, count: int) -> dict[str, NDArray[Any]]:
    """The answers to the first `count` images in full batches of `size`: one that the images do not fill holds some of
    them twice."""
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % len(evidence.inputs)
        outputs = runtime.run({runtime.inputs[0].name: evidence.inputs[rows]})
        parts.append({name: outputs[name][: min(size, count - start)] for name in evidence.outputs})
    return {name: np.concatenate([part[name] for part in parts]) for name in evidence.outputs}
