"""Workers on shards that die, fail or wait: for tests of what shares work among processes."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from calibration.distributed.shards import Shard
from runtimes.errors import UnknownName


@dataclass(frozen=True)
class Adding:
    """Opens workers that add up a shard's places; on some shards they die first, or fail.

    Attributes:
        dies_once, dies_always, fails: the numbers of shards on which a worker is killed the first time, dies of a
            segmentation fault each time, and raises an error of ours.
        notes: a folder where each worker leaves a file `PID`, and one for each death.
        hangs_once: the numbers of shards on which a worker waits without end the first time.
        takes_s: how long a shard takes.
    """

    notes: Path
    dies_once: frozenset[int] = frozenset()
    dies_always: frozenset[int] = frozenset()
    fails: frozenset[int] = frozenset()
    hangs_once: frozenset[int] = frozenset()
    takes_s: float = 0.0

    def __call__(self, threads: int) -> Adder:
        (self.notes / str(os.getpid())).touch()
        return Adder(self)


class Adder:
    """Adds up the places of a shard."""

    def __init__(self, plan: Adding) -> None:
        self._plan = plan

    def work(self, shard: Shard) -> int:
        plan, died = self._plan, self._plan.notes / f"died-{shard.number}"
        if shard.number in plan.fails:
            raise UnknownName("shard", str(shard.number), ("1", "2"))
        if shard.number in plan.dies_always:
            ctypes.string_at(0)  # a segmentation fault in native code
        if shard.number in plan.dies_once and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        hung = plan.notes / f"hung-{shard.number}"
        if shard.number in plan.hangs_once and not hung.exists():
            hung.touch()
            time.sleep(3600)
        time.sleep(plan.takes_s)
        return sum(range(shard.start, shard.stop))

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Dying:
    """Opens no worker: its process dies meanwhile."""

    def __call__(self, threads: int) -> Adder:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
