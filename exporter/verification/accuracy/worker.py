"""Answer one shard of labelled images after another: what an evaluation does on each of its workers."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.data import ImageSource
from calibration.distributed.seen import check_seen, seen_bundle
from calibration.distributed.shards import Shard
from calibration.reading import Unreadable, read_ahead
from exporter.verification.accuracy.resume_file import SHOWN, EvaluatedShard, Ran
from runtimes._open import open_runtime
from runtimes.base import Runtime
from runtimes.bundle import Bundle, sha256_of_file
from runtimes.classify import check_finite
from runtimes.cores import usable_cores
from runtimes.errors import BackendUnavailable
from runtimes.parity.compare import class_scores
from runtimes.preprocess import takes_any_size
from runtimes.stream import preparer
from runtimes.tuning import Tuning

TOP = 5
BATCHES_AHEAD = 2
SHARD = 64
"""How many images are in a shard, at least: enough for a shard's own cost to vanish, few enough to lose little."""


def shard_size(bundle: Bundle) -> int:
    """How many images are in a shard: a whole number of the bundle's middle batches."""
    batch = bundle.manifest.batch.opt
    return -(-SHARD // batch) * batch


class EvaluationWorker:
    """Classifies shards of a source's images at a bundle's middle batch, or one by one where they come in any size.

    Args:
        runtime: the bundle, opened; it is closed with the worker.
        source: labelled with the model's classes.
        threads: that read images, for each shard under way.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, source: ImageSource, threads: int) -> None:
        self._runtime, self._source, self._threads = runtime, source, threads
        # Pictures of any size, photographs say, are fed one by one: a batch of them would be gigabytes.
        self._size = 1 if takes_any_size(runtime.inputs[0]) else bundle.manifest.batch.opt
        self._prepare = preparer(bundle.manifest.preprocess, runtime.inputs[0])
        self._lock = Lock()

    def work(self, shard: Shard) -> EvaluatedShard:
        """The answers to a shard's images.

        Raises:
            ExportError: the model gives logits that are not finite.
        """
        labels, places = self._source.labels, range(shard.start, shard.stop)
        assert labels is not None
        fed: list[tuple[int, NDArray[Any]]] = []
        rows: list[tuple[int, ...]] = []
        unreadable: list[str] = []
        model_s = 0.0
        ahead = BATCHES_AHEAD * self._size
        with closing(read_ahead(self._source, places, self._prepare, ahead=ahead, threads=self._threads)) as read:
            for place, picture in zip(places, read, strict=True):
                if isinstance(picture, Unreadable):
                    unreadable.append(picture.reason)
                else:
                    fed.append((place, picture))
                if fed and (len(fed) == self._size or place == places[-1]):
                    tops, seconds = self._top_classes([array for _, array in fed])
                    rows += [(at, int(labels[at]), *top) for (at, _), top in zip(fed, tops.tolist(), strict=True)]
                    model_s += seconds
                    fed.clear()
        return EvaluatedShard(shard.start, shard.stop, tuple(rows), tuple(unreadable), round(model_s, 6), 0.0)

    def close(self) -> None:
        """Close the runtime, once the model has answered what it works on."""
        with self._lock:
            self._runtime.close()

    def _top_classes(self, inputs: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], float]:
        """The most likely classes of each image, most likely first, int64 (images, 5), or fewer where there are fewer;
        and how many seconds the model took."""
        batch = np.stack(inputs)
        with self._lock:
            begin = time.perf_counter()
            outputs = self._runtime.run({self._runtime.inputs[0].name: batch})
            seconds = time.perf_counter() - begin
        logits = class_scores(outputs)
        check_finite(logits)
        return np.argsort(-logits, axis=1, kind="stable")[:, :TOP].astype(np.int64), seconds


def ran_by(bundle: Bundle, backend: str, runtime: Runtime, trusted: Collection[str] = ()) -> Ran:
    """What runs an opened bundle; `backend` and `trusted` are what it was opened by."""
    chosen = backend if runtime.choice is None else runtime.choice.backend
    return Ran(chosen, runtime.provider, sha256_of_file(runtime.file_of(bundle, trusted)))


@dataclass(frozen=True)
class OpenEvaluation:
    """Opens workers in other processes, and on other machines, which see the bundle and the images at the same paths.

    Attributes:
        folder: the bundle's, absolute.
        manifest: its `manifest_digest`.
        source: the images, labelled with the model's classes; `readable` is the place of one (`seen.first_readable`).
        backend, provider, trusted: as `runtimes.open_runtime` takes them.
        ran: what every worker must run, once one of them has told.
    """

    folder: Path
    manifest: str
    source: ImageSource
    readable: int | None
    backend: str
    provider: str | None = None
    trusted: tuple[str, ...] = ()
    ran: Ran | None = None

    def __call__(self, threads: int) -> EvaluationWorker:
        """Open a worker.

        Raises:
            BackendUnavailable: this process does not see the bundle or the images, or cannot run the backend, or would
                not run it as the other workers do.
            ResnetExportError: as `runtimes.open_runtime`.
        """
        return self._opened(threads)[0]

    def telling(self, threads: int) -> TellingWorker:
        """Open a worker that only tells what it runs. Raises as `__call__` does."""
        return TellingWorker(*self._opened(threads))

    def _opened(self, threads: int) -> tuple[EvaluationWorker, Ran]:
        bundle = seen_bundle(self.folder, self.manifest)
        check_seen(self.source, self.readable)
        tuning = Tuning(min(threads, usable_cores()))
        runtime = open_runtime(bundle, self.backend, provider=self.provider, trust_engine=self.trusted, tuning=tuning)
        worker = EvaluationWorker(bundle, runtime, self.source, threads)
        ran = ran_by(bundle, self.backend, runtime, self.trusted)
        if self.ran not in (None, ran):
            worker.close()
            raise BackendUnavailable(
                f"expected every worker to run {_ran_text(self.ran)}, got {_ran_text(ran)}; name --backend and "
                "--provider, and give all machines the same devices and versions"
            )
        return worker, ran


class TellingWorker:
    """Tells what a worker runs, whatever the shard."""

    def __init__(self, worker: EvaluationWorker, ran: Ran) -> None:
        self._worker, self._ran = worker, ran

    def work(self, shard: Shard) -> Ran:
        return self._ran

    def close(self) -> None:
        self._worker.close()


def _ran_text(ran: Ran) -> str:
    return f"{ran.backend} on {ran.provider} (file {ran.file[:SHOWN]})"
