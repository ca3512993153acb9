"""Shards of a source's pictures, and work on them in this process."""

from __future__ import annotations

import pickle
from threading import Event, Lock

import pytest

from calibration.distributed.local import Local
from calibration.distributed.shards import Shard, shards_of
from runtimes.cores import usable_cores
from runtimes.errors import BadInput, BoardError, ParityError, UnknownName
from runtimes.parity.compare import ParityReport


class Sums:
    """A worker that adds up a shard's places."""

    def __init__(self, threads: int) -> None:
        self.threads, self.at_once, self.most, self.closed = threads, 0, 0, 0
        self._lock = Lock()

    def work(self, shard: Shard) -> int:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if shard.start < 0:
            raise ValueError("no such place")
        with self._lock:
            self.at_once -= 1
        return sum(range(shard.start, shard.stop))

    def close(self) -> None:
        self.closed += 1


def test_shards_hold_every_place_once_whatever_the_count() -> None:
    for count in (0, 1, 7, 8, 9, 64):
        shards = shards_of(count, 8)
        assert [place for shard in shards for place in range(shard.start, shard.stop)] == list(range(count))
        assert [shard.number for shard in shards] == list(range(len(shards)))
        assert all(shard.start % 8 == 0 for shard in shards)


def test_results_come_in_order_with_their_shards_and_the_worker_is_closed() -> None:
    opened: list[Sums] = []

    def open_worker(threads: int) -> Sums:
        opened.append(Sums(threads))
        return opened[0]

    shards = shards_of(100, 8)
    assert list(Local(3).run(open_worker, shards)) == [(one, sum(range(one.start, one.stop))) for one in shards]
    (worker,) = opened
    assert (worker.threads, worker.closed) == (3, 1)
    assert worker.most <= 2


def test_as_many_threads_as_cores_where_none_are_named_and_no_worker_without_shards() -> None:
    opened: list[int] = []

    def open_worker(threads: int) -> Sums:
        opened.append(threads)
        return Sums(threads)

    assert list(Local().run(open_worker, ())) == []
    assert opened == []
    assert len(list(Local().run(open_worker, shards_of(1, 1)))) == 1
    assert opened == [usable_cores()]


def test_the_error_of_a_worker_is_raised_and_closes_it() -> None:
    worker = Sums(1)
    with pytest.raises(ValueError, match="no such place"):
        list(Local().run(lambda _: worker, (Shard(0, 0, 8), Shard(1, -1, 8), Shard(2, 8, 16))))
    assert worker.closed == 1


def test_leaving_early_closes_the_worker_before_it_waits_for_the_work_under_way() -> None:
    closed = Event()

    class Slow:
        def work(self, shard: Shard) -> int:
            if shard.number:
                assert closed.wait(30)
            return shard.number

        def close(self) -> None:
            closed.set()

    results = Local().run(lambda _: Slow(), shards_of(30, 10))
    assert next(results) == (Shard(0, 0, 10), 0)
    results.close()
    assert closed.is_set()


def test_an_error_of_ours_is_the_same_in_another_process() -> None:
    report = ParityReport(ok=False, images=1, batches=(1,), backends={})
    for error in (
        BadInput("no picture"),
        UnknownName("backend", "onyx", ("onnxruntime", "pytorch")),
        BoardError("gone", 4),
        ParityError("out of budget", report),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.exit_code, vars(copy)) == (
            type(error),
            str(error),
            error.exit_code,
            vars(error),
        )
