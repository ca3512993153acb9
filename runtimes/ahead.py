"""Work ahead in threads: results in order, as many waiting as are allowed, and no thread left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from runtimes.cores import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int, threads: int | None = None
) -> Generator[Result, None, None]:
    """The results of `work` for each of `items`, in order, computed in threads while earlier ones are used.

    Items are taken in the caller's thread. An error of `work`, or of `items`, is raised in its result's place. Once the
    iterator ends, fails or is closed, what has not begun is dropped and its threads end.

    Args:
        ahead: how many results, at most, are computed and wait to be taken.
        threads: None takes as many as the process may use cores.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="ahead") as pool:
        try:
            for future in _begun(pool, work, items):
                waiting.append(future)
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _begun(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Future[Result]]:
    """A future for each item, and one for the error with which `items` ends, if it does."""
    try:
        for item in items:
            # In a box that the work empties: a thread keeps what it was given until after the result can be taken.
            yield pool.submit(lambda box: work(box.pop()), [item])
    except Exception as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
