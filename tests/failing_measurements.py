"""Measurements that go wrong in the middle, of one bundle alone; the class is sent to the process that measures it."""

from __future__ import annotations

import time

from crashing import segfaults

from runtimes.benchmark.measure import Job, Measurement, Opened, Task

FAILING = "failing"
"""The name of the bundle's folder."""


class _Failing(Measurement):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.fails = task.bundle.folder.name == FAILING
        self.rounds = 0


class CrashesInTheThirdRound(_Failing):
    """The library ends its process."""

    def measure(self, job: Job) -> tuple[float, tuple[float, ...]]:
        self.rounds += 1
        if self.fails and self.rounds > 2:
            segfaults()
        return super().measure(job)


class RaisesInTheThirdRound(_Failing):
    """The library raises an error of its own, over several lines."""

    def measure(self, job: Job) -> tuple[float, tuple[float, ...]]:
        self.rounds += 1
        if self.fails and self.rounds > 2:
            raise RuntimeError("out of memory\nat 0x1234")
        return super().measure(job)


class CrashesOnOpening(_Failing):
    def open(self) -> Opened:
        if self.fails:
            segfaults()
        return super().open()


class HangsOnOpening(_Failing):
    def open(self) -> Opened:
        if self.fails:
            time.sleep(600)
        return super().open()
