"""What rounds say: intervals with known answers, and when a winner may be named."""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.benchmark.statistics import (
    decide,
    drift,
    fewest_rounds,
    median_interval,
    paired_ratio,
    percentiles,
    unpaired_ratio,
    variation,
)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(5, None, None), (6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (30, 10, 21), (50, 18, 33)],
)
def test_the_limits_of_a_median_are_those_of_the_sign_tests_tables(
    count: int, low: float | None, high: float | None
) -> None:
    # Conover 1999, table A3; also in Hollander and Wolfe, table A.2
    found = median_interval([float(value) for value in range(count, 0, -1)])
    assert (found.low, found.high) == (low, high)
    assert found.median == (count + 1) / 2
    assert found.is_known == (low is not None)


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = median_interval(list(random.exponential(1.0, 12)))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.log(2) <= found.high
    assert held / 2000 >= 0.95  # conservative: 96.1 % for twelve values


def test_a_paired_ratio_is_not_blurred_by_what_slows_both() -> None:
    weather = np.array([1.0, 0.5, 2.0, 0.7, 1.3, 0.9, 1.1, 0.6, 1.6, 1.2])
    found = paired_ratio(list(130 * weather), list(100 * weather))
    assert found.median == pytest.approx(1.3)
    assert found.low == pytest.approx(1.3)
    alone = unpaired_ratio(list(130 * weather), list(100 * weather))
    assert alone.median == pytest.approx(1.3)
    assert alone.low is not None
    assert alone.low < 1


def test_an_unpaired_ratio_takes_the_worst_of_both_intervals() -> None:
    first, second = [float(value) for value in range(11, 31)], [float(value) for value in range(1, 21)]
    each, other = median_interval(first, 0.975), median_interval(second, 0.975)
    found = unpaired_ratio(first, second)
    assert each.low is not None
    assert other.high is not None
    assert found.low == each.low / other.high
    assert found.median == 20.5 / 10.5
    assert unpaired_ratio([1.0], [2.0]).low is None


STEADY = [100.0, 102.0, 98.0, 101.0, 99.0, 100.0, 103.0, 97.0, 100.0, 101.0]


def test_the_fastest_is_named_where_every_comparison_is_decided() -> None:
    found = decide({"slow": [rate / 2 for rate in STEADY], "fast": STEADY, "middle": [rate / 1.2 for rate in STEADY]})
    assert (found.best, found.decided, found.tied) == ("fast", True, ())
    assert found.ratios["slow"].median == pytest.approx(2.0)
    assert found.ratios["middle"].low == pytest.approx(1.2)
    assert found.rounds_needed is None


def test_no_winner_is_named_where_rounds_disagree_and_what_would_help_is_said() -> None:
    turns = [1.05, 0.97, 1.04, 0.98, 1.03, 1.02, 0.99, 1.04, 0.96, 1.05]
    found = decide(
        {"one": [rate * turn for rate, turn in zip(STEADY, turns, strict=True)], "other": STEADY, "slow": [1.0] * 10}
    )
    assert (found.best, found.decided, found.tied) == ("one", False, ("other",))
    assert found.rounds_needed is not None
    assert found.rounds_needed > 10


def test_too_few_rounds_decide_nothing_however_clear_they_are() -> None:
    found = decide({"fast": [100.0] * 5, "slow": [1.0] * 5})
    assert not found.decided
    assert found.rounds_needed == fewest_rounds() == 6
    assert decide({"fast": [100.0] * 6, "slow": [1.0] * 6}).decided


def test_many_contenders_need_more_evidence() -> None:
    rates = {f"number {place}": [100.0 - place] * 6 for place in range(9)}
    assert not decide(rates).decided, "one of eight comparisons would be won by chance too often"
    assert fewest_rounds(8) == 9
    assert decide({name: [values[0]] * 9 for name, values in rates.items()}).decided


def test_equal_ones_are_never_decided() -> None:
    found = decide({"one": STEADY, "other": STEADY})
    assert not found.decided
    assert found.rounds_needed is None


def test_a_random_winner_is_named_no_more_often_than_the_risk() -> None:
    random = np.random.default_rng(1)
    named = sum(
        decide({str(place): list(random.lognormal(0, 0.1, 10)) for place in range(4)}).decided for _ in range(1000)
    )
    assert named / 1000 <= 0.05


def test_noise_and_drift_are_measured() -> None:
    assert variation([100.0, 100.0, 100.0]) == 0
    assert variation([90.0, 110.0]) == pytest.approx(0.1414, abs=1e-4)
    assert variation([1.0]) == 0
    assert drift([[100.0] * 5 + [90.0] * 5, [10.0] * 5 + [9.0] * 5]) == pytest.approx(0.9)
    assert drift([[1.0], []]) == 1
    assert drift([[2.0, 7.0, 1.0]]) == pytest.approx(0.5), "the round in the middle belongs to neither half"


def test_percentiles_are_values_that_were_measured() -> None:
    found = percentiles([float(value) for value in range(1, 201)])
    assert len(found) == 101
    assert (found[0], found[50], found[99], found[100]) == (1, 100, 198, 200)
    assert percentiles([3.0]) == [3.0] * 101
