"""What models answer to the inputs of a check: run in shards, of which the outputs alone are kept."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.distributed.local import LOCAL
from calibration.distributed.seen import check_seen, manifest_digest, seen_bundle
from calibration.distributed.shards import Executor, Shard, shards_of
from exporter.verification.pictures import PictureInputs
from exporter.verification.plan import CheckPlan
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.cores import usable_cores
from runtimes.kernels import KernelCount
from runtimes.parity.compare import OtherBatch
from runtimes.parity.evidence import Inputs, joined, outputs_at
from runtimes.parity.golden import inputs_for
from runtimes.tuning import Tuning

SHARD = 64
"""How many inputs are in memory at a time, twice over; made a multiple of the largest batch."""


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
        elsewhere: it runs in other processes, perhaps on other machines, which see the bundle at the same path.
    """

    bundle: Bundle
    backend: str | None
    inputs: Inputs
    plan: CheckPlan
    proves: bool = False
    elsewhere: bool = False

    def __call__(self, threads: int) -> ModelWorker:
        """Open a worker.

        Raises:
            BackendUnavailable: the backend is not here, or this process does not see the bundle or the pictures.
            ResnetExportError: as `runtimes.open_runtime`.
        """
        if not self.elsewhere:
            return ModelWorker(self, self._open(self.plan.tuning))
        if isinstance(self.inputs, PictureInputs):
            check_seen(self.inputs.source, 0)
        here = replace(self, bundle=seen_bundle(self.bundle.folder, manifest_digest(self.bundle)))
        return ModelWorker(here, here._open(replace(self.plan.tuning, threads=min(threads, usable_cores()))))

    def _open(self, tuning: Tuning) -> Runtime:
        from runtimes._open import backend_class, open_reference, open_runtime

        plan = self.plan
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
        """Close the model, once it has answered what it works on."""
        with self._lock:
            self._model.close()


def answers_of(task: OpenModel, executor: Executor | None = None) -> Answered:
    """The model's answers to all inputs, the same ones wherever the shards are run and whichever is done first.

    Args:
        executor: runs the model elsewhere; None runs it in this process.
    """
    largest, inputs = task.bundle.manifest.batch.max, task.inputs
    name_of = inputs.source.name_of if isinstance(inputs, PictureInputs) else str
    if executor is not None:
        task = replace(task, bundle=replace(task.bundle, folder=task.bundle.folder.absolute()), elsewhere=True)
    shards = shards_of(len(inputs), -(-SHARD // largest) * largest)
    with closing((executor or LOCAL).run(task, shards, name_of)) as results:
        found = {shard.start: answered for shard, answered in results}
    ordered = [found[start] for start in sorted(found)]
    return ordered[0]._replace(outputs=joined([one.outputs for one in ordered]))
