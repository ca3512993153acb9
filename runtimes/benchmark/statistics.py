"""What rounds of measurements say: medians with intervals, paired ratios, and whether one contender is the fastest.

The intervals are those of the sign test: order statistics, which assume nothing of how times are distributed (Hoefler
and Belli 2015, "Scientific Benchmarking of Parallel Computing Systems", SC '15, section 3.1.3; Conover 1999,
"Practical Nonparametric Statistics", section 3.2). Two contenders are compared round by round, since what slows a round
slows both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
MOST_ROUNDS = 1000
"""More are not suggested: then the difference is too small to matter."""


@dataclass(frozen=True)
class Interval:
    """A median and its confidence limits; without limits where there are too few values for any."""

    median: float
    low: float | None
    high: float | None

    @property
    def is_known(self) -> bool:
        return self.low is not None


@dataclass(frozen=True)
class Decision:
    """Which of several contenders is the fastest.

    Attributes:
        best: the one with the highest median.
        decided: is it faster than each other one, by its paired interval?
        tied: those that it is not decidedly faster than; of a decided one empty.
        ratios: of the best to each other one, by name, with the paired interval.
        rounds_needed: how many rounds would decide it if they are as these; None where it is decided, or none would.
    """

    best: str
    decided: bool
    tied: tuple[str, ...]
    ratios: dict[str, Interval]
    rounds_needed: int | None


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of at least one value, with its two-sided interval by the sign test."""
    ordered, rank = sorted(values), _rank(len(values), confidence)
    middle = statistics.median(ordered)
    return Interval(middle, ordered[rank - 1], ordered[-rank]) if rank else Interval(middle, None, None)


def paired_ratio(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """How many times the rate `second` the rate `first` is: the median over rounds of the ratio, with its interval.

    Args:
        first, second: rates above 0, in the same rounds.
    """
    found = median_interval(
        [math.log(one / other) for one, other in zip(first, second, strict=True)], confidence=confidence
    )
    return _exp(found)


def unpaired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """As `paired_ratio`, for rates of different runs. Each median's interval is one of 97.5 %, so that both hold at
    once with 95 % (Bonferroni): wider than a paired one."""
    each = 1 - (1 - CONFIDENCE) / 2
    one, other = median_interval(first, each), median_interval(second, each)
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Interval(one.median / other.median, None, None)
    return Interval(one.median / other.median, one.low / other.high, one.high / other.low)


def decide(rates: Mapping[str, Sequence[float]]) -> Decision:
    """Which of the contenders is the fastest, from the rate of each in the same rounds.

    Each comparison of the best with another has an equal part of the risk of 5 % (Bonferroni), since the best is the
    one that looks best.
    """
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(medians, key=lambda name: medians[name])
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(rates) - 1)
    ratios = {name: paired_ratio(rates[best], values, confidence) for name, values in rates.items() if name != best}
    tied = tuple(name for name, ratio in ratios.items() if ratio.low is None or ratio.low <= 1)
    needed = [_rounds_needed(rates[best], rates[name], confidence) for name in tied]
    known = [one for one in needed if one is not None]
    return Decision(best, not tied, tied, ratios, max(known) if known and len(known) == len(needed) else None)


def fewest_rounds(comparisons: int = 1) -> int:
    """How many rounds can decide `comparisons` comparisons at all: where every round says the same."""
    risk = (1 - CONFIDENCE) / max(1, comparisons)
    return math.ceil(1 - math.log2(risk))


def variation(values: Sequence[float]) -> float:
    """The coefficient of variation: standard deviation over mean, of rates in rounds; 0 for a single one."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else 0.0


def drift(series: Sequence[Sequence[float]]) -> float:
    """How the machine's speed changed during the run: the rates of the second half of the rounds over those of the
    first half, as medians, on (geometric) average over all series; 1 where it did not change."""
    logs = [
        math.log(statistics.median(values[(len(values) + 1) // 2 :]) / statistics.median(values[: len(values) // 2]))
        for values in series
        if len(values) > 1
    ]
    return math.exp(statistics.fmean(logs)) if logs else 1.0


@cache
def _rank(count: int, confidence: float) -> int:
    """Which of `count` ordered values is the lower limit of their median, counted from 1; 0 if even the first is not:
    the largest rank r with P(fewer than r of `count` coins show heads) at most half of the risk.

    The sum begins ten standard deviations below the middle: what lies before that is less than a float's last digit.
    """
    below, rank = 0.0, max(0, count // 2 - 5 * math.isqrt(count))
    while rank < count // 2:
        ways = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        below += math.exp(ways - count * math.log(2))
        if 2 * below > 1 - confidence:
            break
        rank += 1
    return rank


def _rounds_needed(first: Sequence[float], second: Sequence[float], confidence: float) -> int | None:
    """How many rounds would decide which is faster if their ratio stays what it is: an interval shrinks with the root
    of the rounds. None if they are too close for any."""
    least = fewest_rounds(round((1 - CONFIDENCE) / (1 - confidence)))
    if len(first) < least:
        return least
    logs = [math.log(one / other) for one, other in zip(first, second, strict=True)]
    found = median_interval(logs, confidence)
    if found.low is None or found.median <= 0:
        return None
    needed = math.ceil(len(logs) * ((found.median - found.low) / found.median) ** 2) + 1
    return needed if needed <= MOST_ROUNDS else None


def _exp(found: Interval) -> Interval:
    low, high = (None if one is None else math.exp(one) for one in (found.low, found.high))
    return Interval(math.exp(found.median), low, high)


def percentiles(values: Sequence[float]) -> list[float]:
    """101 values, from the smallest (0) to the largest (100): the nearest ranks, each a value that was measured."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(place / 100 * len(ordered)) - 1)] for place in range(101)]
