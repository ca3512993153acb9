"""Shards of a source's pictures, and what works on them: the same in one process and on many machines.

A task cuts its pictures into shards of a fixed size, says how a worker is opened, and merges what comes back, which is
keyed by shard. Its result depends neither on the number of workers nor on the order in which they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, TypeVar

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Shard(NamedTuple):
    """Some of a source's pictures: the places from `start` up to, not including, `stop`."""

    number: int
    start: int
    stop: int


def shards_of(count: int, size: int) -> tuple[Shard, ...]:
    """The shards of `count` pictures, `size` in each, of which the last may hold fewer.

    The size belongs to the task (a whole number of its batches), and never to the number of workers.
    """
    starts = range(0, count, size)
    return tuple(Shard(number, start, min(start + size, count)) for number, start in enumerate(starts))


class Worker(Protocol[Result_co]):
    """Works on shards, one after another or two at once, from two threads: while the model runs one, the other's
    pictures are read. What is not safe for two threads, it guards itself."""

    def work(self, shard: Shard) -> Result_co:
        """The result of one shard: small, and the same wherever it is worked on."""

    def close(self) -> None:
        """Free the model. Work that is still under way fails soon; nobody waits for its result."""


OpenWorker = Callable[[int], Worker[Result]]
"""Opens a worker that uses so many threads of the processor. For Ray it can be pickled: it holds paths, not pixels."""


class Executor(Protocol):
    """Where shards are worked on."""

    def run(
        self, open_worker: OpenWorker[Result], shards: Sequence[Shard], name_of: Callable[[int], str] = str
    ) -> Generator[tuple[Shard, Result], None, None]:
        """Each shard with its result, once, in any order; no worker is opened where there are no shards.

        Whoever may stop before the end closes the generator (`contextlib.closing`), which ends the work.

        Args:
            name_of: what a user calls the picture at a place, for messages.

        Raises:
            ExportError: no worker could finish some of the shards; names their pictures, after all others were yielded.
            ResnetExportError: what a worker raises.
        """
