"""How many times as fast as another bundle the first one runs, both measured in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.benchmark.results import BundleFacts, Result, Timing
from runtimes.benchmark.statistics import Interval, fewest_rounds, paired_ratio
from runtimes.errors import BackendUnavailable, SpeedError


@dataclass(frozen=True)
class Speedup:
    """The fastest way to run each of two bundles, and how many times as many images a second the first runs."""

    first: str
    second: str
    ratio: Interval
    rounds: int

    @property
    def text(self) -> str:
        """`A runs 2.00 times as many images a second as B (95 % interval 1.90 to 2.10)`."""
        low, high = self.ratio.low, self.ratio.high
        limits = "too few rounds for an interval" if low is None else f"95 % interval {low:.2f} to {high:.2f}"
        return f"{self.first} runs {self.ratio.median:.2f} times as many images a second as {self.second} ({limits})"


def speedup_of(result: Result) -> Speedup:
    """Compare the first two bundles of a result: each by the contender and batch size with the most images a second.

    Raises:
        BackendUnavailable: for one of them nothing was measured whose answers are within its budget.
    """
    sides = [_best(result, bundle) for bundle in result.bundles[:2]]
    (one, fast), (other, slow) = sides
    return Speedup(one, other, paired_ratio(fast.images_per_s, slow.images_per_s), len(fast.images_per_s))


def check_speedup(found: Speedup, least: float) -> None:
    """Hold a speed-up to what was asked for, by its lower limit.

    Raises:
        SpeedError: it is lower, or undecided.
    """
    low, high = found.ratio.low, found.ratio.high
    if low is None or high is None:
        raise SpeedError(
            f"expected at least {least:g} times, got too few rounds to tell: {found.text}; give --rounds "
            f"{fewest_rounds()} or more"
        )
    if high < least:
        raise SpeedError(f"expected at least {least:g} times, got fewer: {found.text}")
    if low < least:
        raise SpeedError(
            f"expected at least {least:g} times, undecided: {found.text}; give more --rounds, on an idle machine"
        )


def _best(result: Result, bundle: BundleFacts) -> tuple[str, Timing]:
    able = [one for one in result.entries_of(bundle) if one.can_win and not one.contender.runs_reference]
    if not able:
        raise BackendUnavailable(
            f"expected a backend that runs {bundle.folder} within its budget, got none (PyTorch runs the FP32 "
            "reference, which does not count); see what the table says"
        )
    best = max(able, key=lambda one: one.fastest().interval.median)
    timing = best.fastest()
    return f"{bundle.name} ({best.contender.name}, batch {timing.batch})", timing
