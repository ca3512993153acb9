"""Run a backend on inputs whose reference outputs are known, and compare: errors, limits, flips, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.parity.budget import Budget
from runtimes.parity.compare import OtherBatch, ParityReport, class_scores, compare_outputs, is_classifier, judged
from runtimes.parity.flips import Flip, flips_between
from runtimes.parity.limits import Limit, Verdict
from runtimes.parity.measures import Accuracy, accuracy
from runtimes.specs import BatchRange

LOWEST_DECADE, HIGHEST_DECADE, BINS_A_DECADE = -9, 1, 4


class Inputs(Protocol):
    """Inputs as a model takes them, (images, ...): an array, or what reads rows of one when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Evidence:
    """Inputs, and the reference's outputs for them.

    Attributes:
        inputs: as the model takes them, (images, ...).
        outputs: the reference's, by name, each (images, ...).
        labels: the true classes, int64 (images,), where they are known.
        must_decide: a limit that these images leave undecided is a failure. A few golden inputs cannot decide agreement
            or accuracy; for them an undecided limit is said, and is none.
    """

    inputs: Inputs
    outputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    must_decide: bool = False


@dataclass(frozen=True)
class Answers:
    """A backend's outputs for images whose reference outputs are known.

    Attributes:
        outputs: at the largest batch, by name, each (images, ...). They are what is measured.
        batches: the batch sizes that were run, the largest last.
        again: outputs at the smaller ones.
    """

    outputs: Mapping[str, NDArray[Any]]
    batches: tuple[int, ...]
    again: Sequence[OtherBatch] = ()


@dataclass(frozen=True)
class Terms:
    """How answers are judged.

    Attributes:
        looks: how many times they may be judged as images come in (see `intervals.look_sizes`); the risk is shared.
        must_decide: see `Evidence`.
    """

    budget: Budget
    looks: int = 1
    must_decide: bool = False


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
        limits: each limit of the budget that applies, and the verdict on it.
        flips: the images whose class changed, the largest margin first; none for features.
        errors: None where an output is not finite.
        accuracy: None where labels are not known.
        must_decide: see `Evidence`.
    """

    report: ParityReport
    limits: tuple[Limit, ...]
    flips: tuple[Flip, ...]
    errors: ErrorHistogram | None
    accuracy: Accuracy | None
    must_decide: bool = False

    @property
    def ok(self) -> bool:
        return self.report.ok

    @property
    def verdict(self) -> Verdict:
        """The worst verdict on any limit, whether or not it has to be decided."""
        found = {limit.verdict for limit in self.limits}
        return "broken" if "broken" in found else "undecided" if "undecided" in found else "ok"

    @property
    def failing(self) -> tuple[Limit, ...]:
        """The limits that make it not `ok`: those broken and, where it must decide, those undecided."""
        return tuple(
            limit
            for limit in self.limits
            if limit.verdict == "broken" or (limit.verdict == "undecided" and self.must_decide)
        )

    @property
    def images_needed(self) -> int | None:
        """How many images in all would decide every limit, if the others go on as these did.

        None where all are decided, or no number would decide one.
        """
        needed = [limit.images_needed for limit in self.limits if limit.verdict == "undecided"]
        counts = [count for count in needed if count is not None]
        return max(counts) if counts and len(counts) == len(needed) else None


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
    inputs, count = evidence.inputs[:], len(evidence.inputs)
    *smaller, largest = batch.proof_sizes
    again = [OtherBatch(np.arange(min(size, count)), outputs_at(runtime, inputs[:size], size)) for size in smaller]
    answers = Answers(outputs_at(runtime, inputs, largest), batch.proof_sizes, again)
    terms = Terms(budget, must_decide=evidence.must_decide)
    return judge(evidence.outputs, name, answers, terms, evidence.labels)


def judge(
    reference: Mapping[str, NDArray[Any]],
    name: str,
    answers: Answers,
    terms: Terms,
    labels: NDArray[np.int64] | None = None,
) -> BackendParity:
    """Compare a backend's answers with the reference's outputs, and judge them.

    Args:
        reference: by name, each (images, ...), for the images of `answers.outputs`.
        name: the backend's name in the report.
        labels: the true classes, int64 (images,), where they are known.
    """
    budget, got = terms.budget, answers.outputs
    measured = compare_outputs(reference, got, budget, answers.again)
    known: Accuracy | None = None
    flips: tuple[Flip, ...] = ()
    if is_classifier(reference):
        if labels is not None:
            known = accuracy(class_scores(reference), class_scores(got), labels)
        if measured.finite:
            flips = flips_between(class_scores(reference), class_scores(got), budget.own_error)
    limits = budget.limits(measured, known, looks=terms.looks)
    measured = judged(measured, limits, must_decide=terms.must_decide)
    count = len(next(iter(reference.values())))
    report = ParityReport(measured.ok, count, answers.batches, {name: measured}, budget)
    errors = error_histogram(reference, got) if measured.finite else None
    return BackendParity(report, limits, flips, errors, known, terms.must_decide)


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


def outputs_at(
    runtime: Runtime, inputs: NDArray[Any], size: int, on_rows: Callable[[int], None] = lambda rows: None
) -> dict[str, NDArray[Any]]:
    """The outputs by name for all inputs, fed `size` at a time; the last batch is filled up with inputs from the
    start."""
    source, parts = runtime.inputs[0].name, []
    for start in range(0, len(inputs), size):
        left = min(size, len(inputs) - start)
        outputs = runtime.run({source: inputs[np.arange(start, start + size) % len(inputs)]})
        parts.append({name: values[:left] for name, values in outputs.items()})
        on_rows(left)
    return joined(parts)


def joined(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The outputs of several blocks of images as those of one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
