"""Run images on a reference and on what is held against it, a block at a time, and keep the outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.pipeline.images import Images, Outputs
from runtimes.base import Runtime
from runtimes.parity.compare import OtherBatch
from runtimes.parity.evidence import Answers, BackendParity, Terms, joined, judge, outputs_at
from runtimes.specs import BatchRange


class Reference:
    """The reference's outputs for images that several trials run, the same ones in the same order: each is run once.

    Attributes:
        size: how many images it runs at a time.
    """

    def __init__(self, runtime: Runtime, size: int) -> None:
        self.runtime, self.size = runtime, size
        self._known: list[Outputs] = []  # none, or those of all images so far

    def outputs(self, images: Images, place: int, on_rows: Callable[[int], None] = lambda rows: None) -> Outputs:
        """By the reference's own names, each (images, ...), for images that follow `place` others."""
        count = len(images.inputs)
        known = sum(len(next(iter(one.values()))) for one in self._known)
        done = min(max(known - place, 0), count)
        on_rows(done)
        if done < count:
            self._known.append(outputs_at(self.runtime, images.inputs[done:], self.size, on_rows))
            self._known = [joined(self._known)]
        return {name: values[place : place + count] for name, values in self._known[0].items()}


class Trial:
    """Runtimes, and their outputs for the images that came so far.

    Attributes:
        images: how many those are.
        labels: their classes, int64 (images,); None where they are not known.
        places: where they are in their source, int64 (images,).
    """

    def __init__(
        self,
        reference: Reference,
        held: Mapping[str, Runtime],
        names: Sequence[str],
        batch: BatchRange,
        on_rows: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Hold runtimes, by name, against a reference.

        Args:
            reference: has run the same images before, or none.
            names: of the outputs, in their order: the reference alone does not know what they are called.
            batch: the sizes to run at. The largest runs all images, the smaller ones the first.
            on_rows: called with how many images a runtime has run, or had run before.
        """
        self.reference, self.held, self.names, self.batch, self.on_rows = reference, held, names, batch, on_rows
        self.images = 0
        self._expected: list[Outputs] = []
        self._found: dict[str, list[Outputs]] = {name: [] for name in held}
        self._again: dict[str, list[OtherBatch]] = {name: [] for name in held}
        self._labels: list[NDArray[np.int64]] = []
        self._places: list[NDArray[np.int64]] = []

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return np.concatenate(self._labels) if self._labels else None

    @property
    def places(self) -> NDArray[np.int64]:
        return np.concatenate(self._places)

    @property
    def outputs(self) -> Outputs:
        """The reference's, by name, each (images, ...)."""
        return joined(self._expected)

    def run(self, images: Images) -> NDArray[np.int64]:
        """Run a block of images.

        Returns:
            the rows of those for which a runtime's answer is not finite and the reference's is.
        """
        *smaller, largest = self.batch.proof_sizes
        count = len(images.fed)
        found = self.reference.outputs(images, self.images, self.on_rows)
        expected = dict(zip(self.names, found.values(), strict=True))
        is_wrong = np.zeros(count, bool)
        for name, runtime in self.held.items():
            if not self.images:
                firsts = ((min(size, count), size) for size in smaller)
                self._again[name] = [
                    OtherBatch(np.arange(rows), outputs_at(runtime, images.fed[:rows], size)) for rows, size in firsts
                ]
            outputs = outputs_at(runtime, images.fed, largest, self.on_rows)
            self._found[name].append(outputs)
            is_wrong |= _finite_rows(expected) & ~_finite_rows(outputs)
        self._expected.append(expected)
        if images.labels is not None:
            self._labels.append(images.labels)
        self._places.append(np.arange(count) + self.images if images.places is None else images.places)
        self.images += count
        return np.flatnonzero(is_wrong)

    def judge(self, terms: Terms) -> dict[str, BackendParity]:
        """Judge all outputs so far, by the runtimes' names."""
        expected, labels = self.outputs, self.labels
        return {
            name: judge(
                expected, name, Answers(joined(parts), self.batch.proof_sizes, self._again[name]), terms, labels
            )
            for name, parts in self._found.items()
        }


def _finite_rows(outputs: Outputs) -> NDArray[np.bool_]:
    """Whether all values of an image's outputs are finite: bool (images,)."""
    rows: NDArray[np.bool_] = np.all(
        [np.isfinite(values).reshape(len(values), -1).all(1) for values in outputs.values()], axis=0
    )
    return rows
