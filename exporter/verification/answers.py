"""What models answer to the inputs of a check: run in shards, of which the outputs alone are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.distributed.local import Local
from calibration.distributed.shards import Executor, Shard, shards_of
from exporter.verification.plan import CheckPlan
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.kernels import KernelCount
from runtimes.parity.compare import OtherBatch
from runtimes.parity.evidence import Inputs, joined, outputs_at
from runtimes.parity.golden import inputs_for

SHARD = 64
"""How many inputs are in memory at a time, twice over; made a multiple of the largest batch."""
LOCAL = Local()


@dataclass(frozen=True)
class Facts:
    """What is to be known of a model that answered: the batch sizes that it was run at, the largest last, and what its
    backend says of how it ran."""

    batches: tuple[int, ...]
    kernels: KernelCount | None
    details: Mapping[str, str]


class Answered(NamedTuple):
    """A model's answers to a shard of the inputs, or to all of them.

    Attributes:
        outputs: by name, each (inputs, ...), at the largest batch.
        again: those of the first inputs at the smaller batch sizes.
        facts: None for all shards but the first.
    """

    outputs: dict[str, NDArray[Any]]
    again: tuple[OtherBatch, ...]
    facts: Facts | None


@dataclass(frozen=True)
class OpenModel:
    """Opens a bundle's model, or its FP32 reference, as a worker on shards of the inputs.

    Attributes:
        backend: None for the reference.
        inputs: as the bundle's graph takes them.
        plan: says how backends are opened.
        proves: also run the smaller batch sizes, on the first inputs.
        has_share: it runs beside others, so that it may use no more threads than it is given.
    """

    bundle: Bundle
    backend: str | None
    inputs: Inputs
    plan: CheckPlan
    proves: bool = False
    has_share: bool = False

    def __call__(self, threads: int) -> ModelWorker:
        return ModelWorker(self, self._open(threads))

    def _open(self, threads: int) -> Runtime:
        from runtimes._open import backend_class, open_reference, open_runtime

        plan = self.plan
        tuning = replace(plan.tuning, threads=threads) if self.has_share else plan.tuning
        if self.backend is None:
            return open_reference(self.bundle, tuning=tuning)
        backend_class(self.backend).check_here()
        where, trusted = plan.provider_of(self.backend), plan.trust_engines
        return open_runtime(self.bundle, self.backend, provider=where, trust_engine=trusted, tuning=tuning)


class ModelWorker:
    """A model that answers shards of inputs: those of one are read while it runs another's."""

    def __init__(self, task: OpenModel, model: Runtime) -> None:
        self._task, self._model, self._lock = task, model, Lock()
        # a server may take fewer sizes than the bundle
        *smaller, self._largest = (model.batch or task.bundle.manifest.batch).proof_sizes
        self._smaller = smaller if task.proves else []

    def work(self, shard: Shard) -> Answered:
        task, model = self._task, self._model
        inputs = inputs_for(model, task.inputs[shard.start : shard.stop], task.bundle)
        with self._lock:
            outputs = outputs_at(model, inputs, self._largest)
            if shard.start:
                return Answered(outputs, (), None)
            count = len(inputs)
            again = [
                OtherBatch(np.arange(min(size, count)), outputs_at(model, inputs[:size], size))
                for size in self._smaller
            ]
            kernels = model.kernels() if task.bundle.manifest.kernels is not None else None
            return Answered(outputs, tuple(again), Facts((*self._smaller, self._largest), kernels, model.details))

    def close(self) -> None:
        self._model.close()


def answers_of(task: OpenModel, executor: Executor = LOCAL, name_of: Callable[[int], str] = str) -> Answered:
    """The model's answers to all inputs, the same ones wherever the shards are run and whichever is done first.

    `name_of` is what a user calls an input.
    """
    largest = task.bundle.manifest.batch.max
    shards = shards_of(len(task.inputs), -(-SHARD // largest) * largest)
    found: dict[int, Answered] = {}
    with closing(executor.run(task, shards, name_of)) as results:
        for shard, answered in results:
            found[shard.start] = answered
    ordered = [found[start] for start in sorted(found)]
    return ordered[0]._replace(outputs=joined([one.outputs for one in ordered]))
