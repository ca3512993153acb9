"""Turns at a model: which thread may use it now, and when it is freed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, final

Answer = TypeVar("Answer")


@final
class Turns:
    """Lets one thread at a time use a model, or all of them `together`, until it is ended.

    In a forked process its lock may be held by a thread that is not there: whoever calls asks for the process first.
    """

    def __init__(self, *, together: bool) -> None:
        self.lock = threading.RLock()
        self.ended = False
        self._together = together
        self._running = False
        self._late: list[Callable[[], None]] = []

    def check(self) -> None:
        """Raises ValueError where the turns are ended."""
        if self.ended:
            raise ValueError("the runtime is closed; open it again")

    def take(self, work: Callable[[], Answer]) -> Answer:
        """What `work` gives, which waits for its turn.

        Raises:
            RuntimeError: this thread is in the middle of a turn, which the handler of a signal or a finaliser
                interrupts.
            ValueError: the turns are ended.
        """
        if self._together:
            self.check()
            return work()
        late: list[Callable[[], None]] = []
        try:
            with self.lock:
                if self._running:
                    raise RuntimeError(
                        "expected one run at a time, got another in the middle of it, as from the handler of a signal; "
                        "run it afterwards"
                    )
                self._running = True
                try:
                    self.check()
                    return work()
                finally:
                    self._running = False
                    late, self._late = self._late, late
        finally:
            for free in late:
                free()

    def end(self, free: Callable[[], None]) -> None:
        """Give no more turns, and free the model once nobody uses it.

        That is now, after another thread's turn; and at the end of this thread's own, where the handler of a signal or
        a finaliser calls in the middle of it.
        """
        with self.lock:
            if self.ended:
                return
            self.ended = True
            if self._running:
                self._late.append(free)
                return
        free()
