"""How long work says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Announce(Protocol):
    """Told of each step as it begins and, in a long one, of how much of it is done."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None: ...


def silent(step: str, done: int = 0, total: int = 0) -> None:
    """Says nothing."""
