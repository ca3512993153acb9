"""Measurements that go wrong in the middle, each on one backend alone; the class is sent to the backend's process."""

from __future__ import annotations

from crashing import segfaults

from runtimes.benchmark.measure import Job, Measurement, Opened

FAILING = "pytorch"


class CrashesInTheThirdRound(Measurement):
    """The library ends its process."""

    rounds = 0

    def measure(self, job: Job) -> tuple[float, tuple[float, ...]]:
        self.rounds += 1
        if self._task.contender.backend == FAILING and self.rounds > 2:
            segfaults()
        return super().measure(job)


class RaisesInTheThirdRound(Measurement):
    """The library raises an error of its own, over several lines."""

    rounds = 0

    def measure(self, job: Job) -> tuple[float, tuple[float, ...]]:
        self.rounds += 1
        if self._task.contender.backend == FAILING and self.rounds > 2:
            raise RuntimeError("out of memory\nat 0x1234")
        return super().measure(job)


class CrashesOnOpening(Measurement):
    def open(self) -> Opened:
        if self._task.contender.backend == FAILING:
            segfaults()
        return super().open()


class CrashesAlways(Measurement):
    def open(self) -> Opened:
        segfaults()
        return super().open()
