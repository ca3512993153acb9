"""Measure one backend with one bundle, in a process of its own: open it, warm it up, time it round by round."""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._open import backend_class, open_runtime
from runtimes.base import Runtime
from runtimes.benchmark.results import THROUGHPUT, Answers, Contender, Line
from runtimes.benchmark.together import rate_together
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable
from runtimes.parity.evidence import compare_backend
from runtimes.parity.golden import evidence_for, golden_evidence, inputs_for
from runtimes.specs import BatchRange
from runtimes.tuning import Tuning

WINDOW, STEADY = 3, 0.05
"""Warmed up: the median time of the last three calls is that of the three before it, but for 5 %."""
LEAST_BATCHES = 4
"""Of a stream: of fewer, filling and emptying it would be most of the time."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        pictures: files for the line `files`.
    """

    bundle: Bundle
    contender: Contender
    tuning: Tuning
    pictures: tuple[Path, ...] = ()
    trust_engines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One measurement of a round: a line at a batch size, for at least `seconds` and at least `calls` calls."""

    line: Line
    batch: int
    seconds: float
    calls: int = 1


@dataclass(frozen=True)
class Opened:
    """What opening took, and what is known of the model as it runs."""

    provider: str
    batch: BatchRange
    import_s: float
    load_s: float
    device_memory_bytes: int | None
    answers: Answers
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmUp:
    """Calls before anything counts, and whether their time had settled, or as many were asked for."""

    calls: int
    seconds: float
    steady: bool


class Measurement:
    """One backend with one bundle."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._runtime: Runtime | None = None
        self._calls: dict[tuple[Line, int], Callable[[], int]] = {}
        self._per_batch: dict[tuple[Line, int], float] = {}

    def open(self) -> Opened:
        """Open the runtime, and hold its answers to the golden inputs against the reference's.

        Raises:
            ResnetExportError: it cannot be opened.
        """
        contender, bundle = self._task.contender, self._task.bundle
        start = time.perf_counter()
        backend_class(contender.backend).check_here()
        imported = time.perf_counter()
        free = _free_device_memory(contender)
        runtime = open_runtime(
            bundle,
            contender.backend,
            provider=contender.provider,
            trust_engine=self._task.trust_engines,
            tuning=replace(self._task.tuning, hint="throughput") if self._many else self._task.tuning,
        )
        self._runtime = runtime
        if contender.variant and not self._many:
            runtime.use(contender.variant)
        loaded = time.perf_counter()
        answers, after = self._answers(), _free_device_memory(contender)
        return Opened(
            provider=runtime.provider,
            batch=runtime.batch or bundle.manifest.batch,
            import_s=imported - start,
            load_s=loaded - imported,
            device_memory_bytes=None if free is None or after is None else max(0, free - after),
            answers=answers,
            details=runtime.details,
        )

    def warm_up(self, job: Job, calls: int | None) -> WarmUp:
        """Run until the time of a call has settled, or `calls` times. The first call may compile, and does not count
        against the longest warm-up."""
        call = self._call(job)
        taken: list[float] = []
        most_s = max(5.0, 20 * job.seconds)
        while len(taken) < calls if calls is not None else not _settled(taken) and sum(taken[1:]) < most_s:
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        if self._is_stream(job):
            self._per_batch[job.line, job.batch] = statistics.median(taken[-WINDOW:]) / LEAST_BATCHES
        return WarmUp(len(taken), sum(taken), calls is not None or _settled(taken))

    def measure(self, job: Job) -> tuple[float, tuple[float, ...]]:
        """Images a second, and the seconds of each call.

        A stream is one call, as long as the measurement should be: starting to overlap takes time.
        """
        if self._task.contender.concurrency > 1:
            return rate_together(self._call(job), self._task.contender.concurrency, job.seconds, job.calls)
        call, images = self._call(job), 0
        taken: list[float] = []
        gc.collect()
        gc.disable()  # as timeit does
        try:
            while len(taken) < job.calls or sum(taken) < job.seconds:
                start = time.perf_counter()
                images += call()
                taken.append(time.perf_counter() - start)
                if self._is_stream(job):
                    break
        finally:
            gc.enable()
        return images / sum(taken), tuple(taken)

    def memory(self) -> int | None:
        """The peak of this process's memory, in bytes."""
        return peak_memory_bytes()

    def close(self) -> None:
        """Close the runtime, if it was opened."""
        self._calls.clear()
        if self._runtime is not None:
            self._runtime.close()

    def _answers(self) -> Answers:
        runtime, bundle = self._opened, self._task.bundle
        fed = evidence_for(runtime, golden_evidence(bundle), bundle)
        budget, size = bundle.manifest.budget, (runtime.batch or bundle.manifest.batch).opt
        at = BatchRange(size, size, size)
        found = compare_backend(fed, self._task.contender.backend, runtime, budget.errors_alone(), at)
        (measured,) = found.report.backends.values()
        return Answers(
            sqnr_db=measured.sqnr_db,
            max_relative_error=measured.max_relative_error,
            images=len(fed.inputs),
            within_budget=not measured.violations and measured.finite,
        )

    @property
    def _opened(self) -> Runtime:
        assert self._runtime is not None, "open it first"
        return self._runtime

    def _is_stream(self, job: Job) -> bool:
        return job.line == "files" or (job.line == "copies" and self._many)

    @property
    def _many(self) -> bool:
        """Does it take several batches at a time?"""
        return self._task.contender.variant == THROUGHPUT

    def _call(self, job: Job) -> Callable[[], int]:
        """What is timed: it returns how many images it ran."""
        if job.line == "files":
            return self._stream_call(job)
        if job.line == "copies" and self._many:
            return self._many_call(job)
        key = (job.line, job.batch)
        if key not in self._calls:
            self._calls[key] = self._array_call(job)
        return self._calls[key]

    def _array_call(self, job: Job) -> Callable[[], int]:
        runtime, feeds = self._opened, self._feeds(job.batch)
        prepared = runtime.prepared(feeds) if job.line == "device" else None

        def call() -> int:
            if prepared is not None:
                prepared()
            else:
                runtime.run(feeds)
            return job.batch

        return call

    def _feeds(self, batch: int) -> dict[str, NDArray[Any]]:
        runtime, bundle = self._opened, self._task.bundle
        inputs = inputs_for(runtime, golden_evidence(bundle).inputs[:], bundle)
        return {runtime.inputs[0].name: repeated(inputs, batch)}

    def _batches(self, job: Job) -> int:
        """How many batches a stream needs to take as long as the measurement should, by those of the warm-up."""
        taken = self._per_batch.get((job.line, job.batch), job.seconds)
        return max(LEAST_BATCHES, math.ceil(job.seconds / taken))

    def _many_call(self, job: Job) -> Callable[[], int]:
        runtime, feeds, count = self._opened, self._feeds(job.batch), self._batches(job)

        def call() -> int:
            for _ in runtime._run_each(repeat(feeds, count)):
                pass
            return count * job.batch

        return call

    def _stream_call(self, job: Job) -> Callable[[], int]:
        pictures = list(islice(cycle(self._task.pictures), self._batches(job) * job.batch))

        def call() -> int:
            for _ in self._opened.stream(pictures, batch=job.batch):
                pass
            return len(pictures)

        return call


def repeated(inputs: NDArray[Any], count: int) -> NDArray[Any]:
    """The first `count` rows, from the beginning again where there are fewer."""
    return inputs[np.arange(count) % len(inputs)]


def peak_memory_bytes(status: Path = STATUS) -> int | None:
    """The peak of this process's resident memory. `getrusage` would give its parent's, where that is larger: Linux
    keeps the peak when a program is started (proc(5), VmHWM)."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def _settled(taken: list[float]) -> bool:
    if len(taken) < 2 * WINDOW:
        return False
    before, last = statistics.median(taken[-2 * WINDOW : -WINDOW]), statistics.median(taken[-WINDOW:])
    return abs(last - before) <= STEADY * before


def _free_device_memory(contender: Contender) -> int | None:
    if contender.provider == "cpu" or contender.is_served:
        return None
    try:
        from runtimes.nvidia.cuda import device

        return device().free_bytes
    except (ImportError, BackendUnavailable):
        return None
