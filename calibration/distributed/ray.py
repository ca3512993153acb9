"""Work on shards on the workers of a Ray cluster.

A worker is an actor: a process of its own, which may die of a crash in native code, of a kill, or with its machine.
What it had under way is then given to others, and another one takes its place. A shard that
was under way at a death is worked on alone from then on, which shows whether it is the one that kills; after three
deaths it is given up. One that has been under way for long is given to an idle worker, too, since its own may hang. Of
each shard the first answer counts, and no other.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from calibration.distributed.shards import OpenWorker, Result, Shard
from runtimes.errors import BackendUnavailable, ExportError

AT_ONCE = 2
"""Shards under way on each worker: the pictures of one are read while the model runs the other's."""
MOST_RESTARTS = 2
"""How often a shard is tried again whose worker died, and a worker is replaced that finished nothing."""
MOST_LOST = 10
"""How many shards are given up before all work is."""
MOST_IN_VAIN = 12
"""How many shards may be under way at deaths before one is finished."""
STALLED_S, STALLED_TIMES = 60.0, 5
"""A shard is late after so many seconds, and so many times what the longest one took."""
PLACED_WITHIN_S = 60
"""How long the cluster may take to find room for the first worker."""
TICK_S = 1.0
DISTRIBUTION = "resnet-export"


@dataclass(frozen=True)
class RayExecutor:
    """Workers of the Ray cluster that this process is connected to.

    Attributes:
        workers: how many, at most.
        threads: of each worker.
        cpus, gpus: what is booked for each worker.
    """

    workers: int
    threads: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' * (self.workers > 1)} of Ray"

    def run(
        self, open_worker: OpenWorker[Result], shards: Sequence[Shard], name_of: Callable[[int], str] = str
    ) -> Generator[tuple[Shard, Result], None, None]:
        """Each shard with its result, in any order. See `calibration.distributed.shards.Executor`.

        Raises:
            BackendUnavailable: the cluster has no room for a worker, or one lacks a package or has another version.
        """
        if not shards:
            return
        crew: _Crew[Result] = _Crew(self, open_worker, shards)
        try:
            yield from crew.results()
        finally:
            crew.dismiss()
        if crew.lost:
            raise ExportError(_lost_text(crew.lost, name_of))


def _lost_text(lost: dict[Shard, str], name_of: Callable[[int], str]) -> str:
    shard, cause = min(lost.items())
    which = f"the pictures from {name_of(shard.start)} to {name_of(shard.stop - 1)}"
    others = f", and so with {len(lost) - 1} more shard{'s' * (len(lost) > 2)}" if len(lost) > 1 else ""
    rest = "what else was begun is done" if len(lost) > MOST_LOST else "all others are done"
    return (
        f"a worker died each of the {MOST_RESTARTS + 1} times that it worked on {which} ({cause}){others}; {rest}; "
        "find the pictures that do it, and remove them"
    )


@dataclass
class _Hand:
    """One actor.

    Attributes:
        failures: how many actors before it, in its place, died without finishing a shard, one after another.
        waited_for: what it was asked for before it can work: to tell who it is, then to open its worker.
        met: whether it runs at all.
        shards: what it works on, by the reference of the result.
    """

    actor: Any
    failures: int
    waited_for: Any
    met: bool = False
    shards: dict[Any, Shard] = field(default_factory=dict)

    @property
    def references(self) -> list[Any]:
        return [self.waited_for] if self.waited_for is not None else list(self.shards)


class _Crew(Generic[Result]):
    """The actors at work on some shards; `lost` are those that were given up, and what became of their actors."""

    def __init__(self, executor: RayExecutor, open_worker: OpenWorker[Result], shards: Sequence[Shard]) -> None:
        self.lost: dict[Shard, str] = {}
        self._threads = executor.threads
        self._waiting, self._left = deque(shards), set(shards)
        self._begun: dict[Shard, float] = {}
        self._longest_s: float | None = None
        self._deaths: Counter[Shard] = Counter()
        self._opening = ray.put(cloudpickle.dumps(open_worker))
        self._actor: Any = ray.remote(_actor_class()).options(
            num_cpus=executor.cpus,
            num_gpus=executor.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        self._hands: list[_Hand] = []
        for _ in range(min(executor.workers, len(shards))):
            self._hire(0)

    def results(self) -> Iterator[tuple[Shard, Result]]:
        """Each finished shard with its result."""
        placed_by = time.monotonic() + PLACED_WITHIN_S
        while self._left:
            if len(self.lost) > MOST_LOST:
                return
            self._hand_out()
            self._take_over()
            hands = {reference: hand for hand in self._hands for reference in hand.references}
            ready, _ = ray.wait(list(hands), num_returns=1, timeout=TICK_S)
            for reference in ready:
                yield from self._take(hands[reference], reference)
            if any(hand.met for hand in self._hands):
                placed_by = time.monotonic() + PLACED_WITHIN_S
            elif time.monotonic() > placed_by:
                raise BackendUnavailable(
                    f"expected the cluster to have room for a worker within {PLACED_WITHIN_S} s, got none; wait until "
                    "its other work is done, or ask for less with --threads or --gpus-per-worker"
                )

    def dismiss(self) -> None:
        """End all actors."""
        for hand in self._hands:
            with suppress(RayError):
                ray.kill(hand.actor)
        self._hands.clear()

    def _hire(self, failures: int) -> None:
        actor = self._actor.remote()
        self._hands.append(_Hand(actor, failures, actor.meet.remote(DISTRIBUTION)))

    def _hand_out(self) -> None:
        """Give every actor that can work one shard, then a second one; a shard that may kill is given alone."""
        for most in range(1, AT_ONCE + 1):
            for hand in self._hands:
                if not self._waiting:
                    return
                if hand.waited_for is not None or len(hand.shards) >= most:
                    continue
                if hand.shards and any(self._deaths[shard] for shard in (*hand.shards.values(), self._waiting[0])):
                    continue
                self._give(hand, self._waiting.popleft())

    def _take_over(self) -> None:
        """Give shards that are late to idle actors as well: their own may hang, and not die."""
        late_s = max(STALLED_S, STALLED_TIMES * (self._longest_s or 0.0))
        for hand in self._hands:
            if self._waiting or hand.waited_for is not None or hand.shards:
                continue
            under_way = Counter(shard for other in self._hands for shard in other.shards.values())
            once = [shard for shard in self._left if under_way[shard] == 1 and not self._deaths[shard]]
            first = min(once, key=self._begun.__getitem__, default=None)
            if first is None or time.monotonic() - self._begun[first] < late_s:
                return
            self._give(hand, first)

    def _give(self, hand: _Hand, shard: Shard) -> None:
        self._begun[shard] = time.monotonic()
        hand.shards[hand.actor.work.remote(shard)] = shard

    def _take(self, hand: _Hand, reference: Any) -> Iterator[tuple[Shard, Result]]:
        """What an actor answered, if that is a shard's result."""
        try:
            kind, answer = ray.get(reference)
        except RayTaskError:  # none of the worker's own errors, which are answers
            raise
        except RayError as error:
            self._died(hand, error)
            return
        if kind == "failed":
            raise pickle.loads(answer)
        if kind == "missing":
            raise BackendUnavailable(f"{answer}; pip install the same there as here")
        if hand.waited_for is None:
            hand.failures = 0
            shard = hand.shards.pop(reference)
            if shard in self._left:
                self._left.remove(shard)
                self._longest_s = max(self._longest_s or 0.0, time.monotonic() - self._begun[shard])
                yield shard, answer
        elif not hand.met:
            hand.met = True
            _check_version(*answer)
            hand.waited_for = hand.actor.open.remote(self._opening, self._threads, os.getcwd())
        else:
            hand.waited_for = None

    def _died(self, hand: _Hand, error: RayError) -> None:
        """Take back what a dead actor worked on, and put another in its place."""
        self._hands.remove(hand)
        with suppress(RayError):
            ray.kill(hand.actor)
        cause = "it ran out of memory" if "memory" in type(error).__name__.lower() else "it crashed, or was killed"
        if "low on memory" in str(error):
            cause = "its machine ran out of memory"
        elsewhere = {shard for other in self._hands for shard in other.shards.values()}
        for shard in self._left.intersection(hand.shards.values()) - elsewhere:
            self._deaths[shard] += 1
            if self._deaths[shard] > MOST_RESTARTS:
                self.lost[shard] = cause
                self._left.remove(shard)
            else:
                self._waiting.append(shard)
        if self._longest_s is None and sum(self._deaths.values()) >= MOST_IN_VAIN:
            raise ExportError(
                f"workers died again and again, and finished nothing ({cause}); run the same without --ray on such a "
                "machine to see why"
            )
        failures = hand.failures + 1
        if failures <= MOST_RESTARTS or not self._hands:
            if failures > MOST_RESTARTS and not hand.shards:
                raise ExportError(
                    f"no worker is left: {failures} died one after another before they could work ({cause}); run the "
                    "same without --ray on such a machine to see why"
                )
            self._hire(failures)


def _check_version(host: str, version: str | None) -> None:
    """Check that a worker has our version of this package.

    Raises:
        BackendUnavailable: it has another one, or none.
    """
    ours = _version()
    if version != ours:
        has = f"got {version}" if version else "got none"
        raise BackendUnavailable(
            f"expected {DISTRIBUTION} {ours or 'from its source'} on every worker, {has} on {host}; pip install the "
            "same there as here"
        )


def _version() -> str | None:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _actor_class() -> type:
    """The class of the actors. It is made here, so that Ray sends its code: it starts where this package is missing."""

    class Actor:
        def meet(self, distribution: str) -> tuple[str, tuple[str, str | None]]:
            """The host's name, and the version of this package there."""
            import socket
            from importlib import metadata

            try:
                version: str | None = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                version = None
            return "done", (socket.gethostname(), version)

        def open(self, opening: bytes, threads: int, folder: str) -> tuple[str, Any]:
            """Open the worker that `opening` pickles, in the caller's folder, if it is there: it may name paths."""
            import contextlib
            import os
            import pickle
            import socket

            with contextlib.suppress(OSError):
                os.chdir(folder)
            try:
                open_worker = pickle.loads(opening)
            except ImportError as error:
                return "missing", f"a worker on {socket.gethostname()} lacks a package: {error}"

            def opened() -> None:
                self.worker = open_worker(threads)

            return self._answer(opened, f"on the worker {socket.gethostname()}: ")

        def work(self, shard: Any) -> tuple[str, Any]:
            return self._answer(lambda: self.worker.work(shard), "")

        def _answer(self, call: Callable[[], Any], where: str) -> tuple[str, Any]:
            """What a call returns, or the error that it raises: pickled, since Ray wraps errors."""
            import pickle
            import traceback

            try:
                return "done", call()
            except Exception as error:
                if where and error.args and isinstance(error.args[0], str):
                    error.args = (where + error.args[0], *error.args[1:])
                try:
                    pickle.loads(pickled := pickle.dumps(error))
                except Exception:
                    pickled = pickle.dumps(RuntimeError(f"in a worker: {traceback.format_exc()}"))
                return "failed", pickled

    return Actor
