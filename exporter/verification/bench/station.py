"""A contender in its own process: opened, warmed up and timed by the process that holds the clock of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from exporter.verification.own_process import Outcome, OwnProcess
from runtimes.benchmark.measure import Job, Measurement, Opened, Task, WarmUp
from runtimes.benchmark.results import THROUGHPUT, Contender, Entry, Latency, Line, Timing
from runtimes.benchmark.statistics import percentiles


@dataclass
class Station:
    """One contender, and what was measured of it so far.

    Attributes:
        jobs: what is measured in each round; empty once it has failed.
    """

    task: Task
    process: OwnProcess
    jobs: tuple[Job, ...] = ()
    rates: dict[tuple[Line, int], list[float]] = field(default_factory=dict)
    calls: dict[tuple[Line, int], list[float]] = field(default_factory=dict)
    entry: Entry = field(init=False)

    def __post_init__(self) -> None:
        self.entry = Entry(self.task.contender, "ok")

    @property
    def ok(self) -> bool:
        return self.entry.ok

    def open(self, jobs: Sequence[Job], remarks: tuple[str, ...] = ()) -> None:
        """Open the runtime there; `jobs` outside of the batch range that it then has are left out, and named."""
        if self._failed(self.process.keep(Measurement, self.task)):
            return
        found = self.process.ask("open")
        if self._failed(found):
            return
        opened: Opened = found.value
        here = tuple(job for job in jobs if opened.batch.min <= job.batch <= opened.batch.max)
        if len(here) < len(jobs):
            left = sorted({job.batch for job in jobs} - {job.batch for job in here})
            remarks = (*remarks, f"batch {', '.join(map(str, left))} is outside of its range {opened.batch}")
        if not here:
            self._fail("failed", f"no batch size within its range {opened.batch}; name one with --batch")
            return
        self.jobs = here
        self.entry = replace(
            self.entry,
            contender=replace(self.task.contender, provider=opened.provider),
            details=opened.details,
            import_s=round(opened.import_s, 4),
            load_s=round(opened.load_s, 4),
            device_memory_bytes=opened.device_memory_bytes,
            answers=opened.answers,
            remarks=remarks,
        )

    def warm_up(self, calls: int | None) -> None:
        """Run every job until its time has settled."""
        for job in self.jobs:
            found = self.process.ask("warm_up", job, calls)
            if self._failed(found):
                return
            done: WarmUp = found.value
            self.entry = replace(
                self.entry,
                warm_up_s=round(self.entry.warm_up_s + done.seconds, 4),
                warm_up_calls=self.entry.warm_up_calls + done.calls,
                steady=self.entry.steady and done.steady,
            )

    def measure(self, job: Job) -> None:
        """Do one job of a round."""
        if job not in self.jobs:
            return
        found = self.process.ask("measure", job)
        if self._failed(found, f"after {len(self.rates.get((job.line, job.batch), []))} rounds: "):
            return
        rate, calls = found.value
        self.rates.setdefault((job.line, job.batch), []).append(rate)
        self.calls.setdefault((job.line, job.batch), []).extend(calls)

    def finish(self) -> Entry:
        """The entry, with all that was measured; of one that failed nothing."""
        if self.ok:
            memory = self.process.ask("memory")
            if not self._failed(memory):
                smallest = min(job.batch for job in self.jobs)
                self.entry = replace(
                    self.entry,
                    memory_bytes=memory.value,
                    timings=tuple(
                        Timing(line, batch, tuple(rates), len(self.calls[line, batch]))
                        for (line, batch), rates in self.rates.items()
                    ),
                    latency=self._latency(smallest),
                )
                self.process.ask("close")
        self.process.close()
        return self.entry

    def _latency(self, batch: int) -> Latency | None:
        calls = self.calls.get(("copies", batch))
        if not calls or self.task.contender.variant == THROUGHPUT:  # of which each batch may wait for others
            return None
        return Latency(batch, len(calls), tuple(round(1e3 * one, 5) for one in percentiles(calls)))

    def _failed(self, outcome: Outcome, when: str = "") -> bool:
        if outcome.verdict != "ok":
            self._fail(outcome.verdict, f"{when}{outcome.reason}")
        return outcome.verdict != "ok"

    def _fail(self, verdict: str, reason: str) -> None:
        self.entry = replace(self.entry, verdict=verdict, reason=reason)
        self.jobs = ()
        self.process.close()


def contenders_of(bundle: str, backend: str, provider: str | None, *, variants: bool) -> Sequence[Contender]:
    """In a process of its own: a backend as `open_runtime` opens it, and its variants, on each of its providers.

    Raises:
        BackendUnavailable: it is not here.
    """
    from runtimes._open import backend_class
    from runtimes.base import Runtime

    kind = backend_class(backend)
    kind.check_here()
    providers = (provider,) if provider is not None else kind.providers() or (None,)
    names = ["", *(kind.VARIANTS if variants else ())]
    if kind._run_each is not Runtime._run_each:  # it can run several batches at a time
        names.append(THROUGHPUT)
    return [Contender(bundle, backend, where, name) for where in providers for name in names]
