"""An executor whose workers are opened from pickled tasks, and finish their shards in any order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.distributed.shards import OpenWorker, Result, Shard


@dataclass(frozen=True)
class Shuffled:
    """So many workers, in this process; `seed` says in which order the shards are done."""

    workers: int
    seed: int

    def run(
        self, open_worker: OpenWorker[Result], shards: Sequence[Shard], name_of: Callable[[int], str] = str
    ) -> Generator[tuple[Shard, Result], None, None]:
        opened = [pickle.loads(pickle.dumps(open_worker))(1) for _ in range(self.workers)]
        for number, place in enumerate(np.random.default_rng(self.seed).permutation(len(shards))):
            answer = opened[number % self.workers].work(shards[place])
            yield shards[place], pickle.loads(pickle.dumps(answer))
        for worker in opened:
            worker.close()
