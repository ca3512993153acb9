"""Progress of long work: each step is reported as it begins, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Progress callback for long work: called as each step begins and, in a long step, with how much of it is done."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None: ...


def silent(step: str, done: int = 0, total: int = 0) -> None:
    """A `Progress` that shows nothing."""


class Steps:
    """The steps of one piece of work: announces each to `progress` and times it.

    Attributes:
        seconds: how long each finished step took, in order.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._reported: set[str] = set()

    def left_out(self, problem: str) -> None:
        """Report once that an image is not read, or a convolution not quantized, and why."""
        if problem not in self._reported:
            self._reported.add(problem)
            self.progress(f"left out: {problem}")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Announce and time the step that runs inside. A step that continues later adds to its time, unannounced."""
        if name not in self.seconds:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)
