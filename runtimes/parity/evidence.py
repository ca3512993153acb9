"""Run a backend on inputs whose reference outputs are known, and compare: errors, limits, flips, accuracy."""

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
    """Inputs, and the reference's outputs for them.

    Attributes:
        inputs: as the model takes them, (images, ...).
        outputs: the reference's, by name, each (images, ...).
        labels: the true classes, int64 (images,), where they are known.
        judge_accuracy: judge the accuracy however few labels there are (see `Budget.limits`).
    """

    inputs: NDArray[Any]
    outputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    judge_accuracy: bool = False


@dataclass(frozen=True)
class ErrorHistogram:
    """How many output values have an error of which size.

    Attributes:
        decades: edges of the bins, as log10 of the error relative to the largest reference value. Smaller and larger
            errors count in the first and the last bin.
        counts: values in each bin, one fewer than the edges.
        exact: values equal to the last bit, which are in no bin.
    """

    decades: tuple[float, ...]
    counts: tuple[int, ...]
    exact: int


@dataclass(frozen=True)
class BackendParity:
    """How one backend's outputs compare with the reference's.

    Attributes:
        report: the parity report, of this backend alone.
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
    """Run the evidence at the smallest, the middle and the largest batch, and compare the outputs with the reference's.

    The largest batch sees every image once, and is what is measured. Of the other batches only the worst values count
    (see `runtimes.parity.compare`).

    Args:
        name: the backend's name in the report.
        budget: what the precision may cost.
        batch: the batch sizes that the model is made for.
    """
    count = len(evidence.inputs)
    *smaller, largest = batch.proof_sizes
    again = [
        OtherBatch(np.arange(min(size, count)), _outputs_at(evidence, runtime, size, min(size, count)))
        for size in smaller
    ]
    got = _outputs_at(evidence, runtime, largest, count)
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
    """Histogram of all outputs' errors, relative to that output's largest reference value; all outputs must be
    finite."""
    edges = np.linspace(LOWEST_DECADE, HIGHEST_DECADE, (HIGHEST_DECADE - LOWEST_DECADE) * BINS_A_DECADE + 1)
    counts, exact = np.zeros(len(edges) - 1, np.int64), 0
    for name, values in reference.items():
        largest = float(np.abs(values).max()) or 1.0
        errors = np.abs(outputs[name] - values).ravel() / largest
        exact += int((errors == 0).sum())
        decades = np.log10(errors[errors > 0]).clip(LOWEST_DECADE, HIGHEST_DECADE)
        counts += np.histogram(decades, edges)[0]
    return ErrorHistogram(tuple(map(float, edges)), tuple(map(int, counts)), exact)


def _outputs_at(evidence: Evidence, runtime: Runtime, size: int, count: int) -> dict[str, NDArray[Any]]:
    """Outputs for the first `count` images, in batches of `size`; the last batch is filled up with images from the
    start."""
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % len(evidence.inputs)
        outputs = runtime.run({runtime.inputs[0].name: evidence.inputs[rows]})
        parts.append({name: outputs[name][: min(size, count - start)] for name in evidence.outputs})
    return {name: np.concatenate([part[name] for part in parts]) for name in evidence.outputs}
