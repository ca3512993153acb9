"""Work on shards in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from calibration.distributed.shards import OpenWorker, Result, Shard
from runtimes.cores import usable_cores

AT_ONCE = 2
"""Shards under way: the pictures of one are read while the model runs the other's."""


@dataclass(frozen=True)
class Local:
    """One worker in this process, with so many threads; None takes as many as the process may use cores."""

    threads: int | None = None

    def run(
        self, open_worker: OpenWorker[Result], shards: Sequence[Shard], name_of: Callable[[int], str] = str
    ) -> Generator[tuple[Shard, Result], None, None]:
        """Each shard with its result, in order. See `calibration.distributed.shards.Executor`."""
        if not shards:
            return
        worker = open_worker(self.threads or usable_cores())
        under_way: deque[tuple[Shard, Future[Result]]] = deque()
        # The worker is closed first: shards under way then end soon, and their threads with them.
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shard") as pool, closing(worker):
            for shard in shards:
                under_way.append((shard, pool.submit(worker.work, shard)))
                if len(under_way) == AT_ONCE:
                    first, future = under_way.popleft()
                    yield first, future.result()
            for last, future in under_way:
                yield last, future.result()
