"""What the parts of `scripts/gpu_checks.py` that measure share: their job, their record, and a clock."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_WORDS = 400
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Job:
    """What a step is asked for.

    Attributes:
        step: its name.
        part: 1 or 2.
        device: `cuda`, or `cpu` to try the step out.
        bundles: the folder that they are in, or are made in.
        record: the JSON file that it writes its results to.
        deadline: in seconds since the epoch; what does not fit is left out, and said so.
        small: tiny sizes, to try the step out.
    """

    step: str
    part: int
    device: str
    bundles: str
    record: str
    deadline: float
    small: bool

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()


@dataclass
class Record:
    """Results by name, written after each one, so that what was measured outlives the process."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)

    def put(self, value: Any, *names: str) -> None:
        """Keep a value at `names`, from the outermost one in."""
        place = self.found
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
        beside = self.path.with_name(f"{self.path.name}.writing")
        beside.write_text(json.dumps(self.found))
        os.replace(beside, self.path)


def attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives for its arguments, or in which words it failed: one thing that does not run must not stop the others."""
    try:
        return work(*arguments)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:MOST_WORDS]}


def median_ms(call: Callable[[], object], *, seconds: float, warm_up: int = 3, fewest: int = 5) -> float:
    """The median time in milliseconds of calls that wait for their work, over `seconds` of them and `fewest` at least."""
    for _ in range(warm_up):
        call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < fewest or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return figure(statistics.median(taken) * 1e3)


def interleaved_ms(calls: dict[str, Callable[[], object]], *, rounds: int, repeats: int) -> dict[str, float]:
    """The median over `rounds` of each call's mean time in milliseconds, one call after the other in every round, so that a clock that
    changes hurts all alike. Each call waits for its work."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            taken[name].append((time.perf_counter() - start) / repeats)
    return {name: figure(statistics.median(times) * 1e3) for name, times in taken.items()}


def figure(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
