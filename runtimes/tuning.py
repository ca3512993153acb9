"""How a model uses the machine that it runs on: one setting for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from runtimes.cores import usable_cores
from runtimes.errors import PlanError

Hint = Literal["latency", "throughput"]


@dataclass(frozen=True)
class Tuning:
    """How a model uses the machine.

    Attributes:
        threads: of the processor; None takes as many as the process may use cores.
        hint: `latency` answers each call as soon as it can; `throughput` takes several at a time where the backend can
            (`Runtime.stream`), which may delay each.

    Raises:
        PlanError: fewer threads than one, or more than there are cores; another hint.
    """

    threads: int | None = None
    hint: Hint = "latency"

    def __post_init__(self) -> None:
        if self.threads is not None:
            cores = usable_cores()
            if type(self.threads) is not int or not 1 <= self.threads <= cores:
                raise PlanError(
                    f"expected --threads from 1 to {cores}, the cores that this process may use, got {self.threads!r}; "
                    "leave it out for all of them"
                )
        if self.hint not in get_args(Hint):
            raise PlanError(f"expected a hint of {' or '.join(get_args(Hint))}, got {self.hint!r}; choose one")

    @property
    def cores(self) -> int:
        """The threads to use."""
        return self.threads or usable_cores()


DEFAULT_TUNING = Tuning()
