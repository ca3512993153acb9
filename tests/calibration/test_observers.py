"""Observers: what each reads off a histogram, against what it would read off the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import observers as folder
from calibration.histogram import Histogram
from calibration.observers import find_observer, observers
from calibration.observers.percentile import PERCENTILES
from runtimes._plugins import plugin_names
from runtimes.errors import UnknownName

Values = NDArray[np.float32]
CHANCE = np.random.default_rng(3)
NORMAL = CHANCE.standard_normal(400_000, np.float32)
DISTRIBUTIONS: dict[str, Values] = {
    "uniform": CHANCE.random(400_000, np.float32) * np.float32(6),
    "half-normal": np.abs(NORMAL),
    "signed": NORMAL * np.float32(1e-3),
    "relu": np.maximum(NORMAL, np.float32(0)),
    "one outlier": np.append(np.abs(NORMAL), np.float32(100)),
    "one far outlier": np.append(np.abs(NORMAL), np.float32(1e6)),
    "constant": np.full(1000, 0.7, np.float32),
    "one value": np.array([3.25], np.float32),
    "two values": np.array([0.0, 5.0], np.float32),
    "mostly zero": np.append(np.zeros(1_000_000, np.float32), CHANCE.random(100, np.float32)),
    "tiny": np.abs(NORMAL) * np.float32(1e-30),
    "denormal": np.full(10, 1e-42, np.float32),
    "huge": np.abs(NORMAL) * np.float32(1e36),
}


def counted(values: Values) -> Histogram:
    histogram = Histogram()
    histogram.update(values, "x")
    return histogram


HISTOGRAMS = {name: counted(values) for name, values in DISTRIBUTIONS.items()}


@pytest.mark.parametrize("name", observers())
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_every_observer_finds_a_positive_threshold_no_larger_than_the_largest_value(name: str, kind: str) -> None:
    histogram = HISTOGRAMS[kind]
    before = histogram.exponent, histogram.largest, histogram.counts.tobytes()
    threshold = find_observer(name)(histogram)
    assert isinstance(threshold, float)
    assert 0 < threshold <= histogram.largest
    assert (histogram.exponent, histogram.largest, histogram.counts.tobytes()) == before
    assert find_observer(name)(histogram) == threshold


@pytest.mark.parametrize("name", observers())
@pytest.mark.parametrize("kind", ["constant", "one value"])
def test_every_observer_keeps_a_lone_value_whole(name: str, kind: str) -> None:
    histogram = HISTOGRAMS[kind]
    assert find_observer(name)(histogram) == pytest.approx(histogram.largest, rel=1e-2)


@pytest.mark.parametrize("name", observers())
def test_every_observer_takes_a_tensor_of_zeros(name: str) -> None:
    assert find_observer(name)(counted(np.zeros(100, np.float32))) == 0


@pytest.mark.parametrize("name", observers())
@pytest.mark.parametrize("power", [-3, 5])
def test_a_threshold_grows_with_its_values(name: str, power: int) -> None:
    values = DISTRIBUTIONS["half-normal"]
    threshold = find_observer(name)(counted(values))
    assert find_observer(name)(counted(values * np.float32(2.0**power))) == pytest.approx(
        threshold * 2.0**power, rel=1e-12
    )


@pytest.mark.parametrize("name", sorted({*observers()} - {"minmax"}))
def test_every_observer_but_minmax_clips_one_outlier_among_many(name: str) -> None:
    assert find_observer(name)(HISTOGRAMS["one outlier"]) < 50


def test_minmax_is_the_largest_magnitude_exactly() -> None:
    for kind, values in DISTRIBUTIONS.items():
        assert find_observer("minmax")(HISTOGRAMS[kind]) == float(np.abs(values).max())


@pytest.mark.parametrize("percent", PERCENTILES)
@pytest.mark.parametrize("kind", ["uniform", "half-normal", "signed", "relu", "one outlier", "mostly zero", "huge"])
def test_percentiles_are_numpys_within_a_bin(percent: float, kind: str) -> None:
    histogram = HISTOGRAMS[kind]
    exact = float(np.percentile(np.abs(DISTRIBUTIONS[kind].astype(np.float64)), percent, method="inverted_cdf"))
    found = find_observer(f"percentile-{percent}")(histogram)
    assert exact <= found <= exact + histogram.width


def test_higher_percentiles_clip_less() -> None:
    thresholds = [find_observer(f"percentile-{percent}")(HISTOGRAMS["half-normal"]) for percent in sorted(PERCENTILES)]
    assert thresholds == sorted(set(thresholds))


def squared_error(values: Values, threshold: float) -> float:
    exact = values.astype(np.float64)
    scale = threshold / 127
    return float(((np.rint(exact / scale).clip(-127, 127) * scale - exact) ** 2).sum())


@pytest.mark.parametrize("kind", ["uniform", "half-normal", "signed", "relu", "one outlier", "mostly zero"])
def test_mse_is_as_good_as_the_best_of_a_search_over_the_values_themselves(kind: str) -> None:
    values = DISTRIBUTIONS[kind][::8] if kind not in ("one outlier", "mostly zero") else DISTRIBUTIONS[kind]
    histogram = counted(values)
    best = min(
        squared_error(values, threshold) for threshold in np.linspace(histogram.largest / 40, histogram.largest, 80)
    )
    found = squared_error(values, find_observer("mse")(histogram))
    assert found <= 1.02 * best
    if kind == "one outlier":
        assert found < 0.5 * squared_error(values, histogram.largest)


def test_entropy_keeps_what_is_uniform_and_cuts_what_thins_out() -> None:
    entropy = find_observer("entropy")
    assert entropy(HISTOGRAMS["uniform"]) > 0.9 * HISTOGRAMS["uniform"].largest
    assert 2 < entropy(HISTOGRAMS["half-normal"]) <= HISTOGRAMS["half-normal"].largest
    assert 2 < entropy(HISTOGRAMS["relu"]) <= HISTOGRAMS["relu"].largest


def test_every_file_of_the_folder_gives_an_observer_and_no_name_is_given_twice() -> None:
    given = [
        name
        for file in plugin_names(folder.__file__)
        for name in __import__(f"{folder.__name__}.{file}", fromlist=["x"]).OBSERVERS
    ]
    assert sorted(given) == sorted(observers())
    assert len(given) == len(set(given))
    assert {"minmax", "mse", "entropy", "percentile-99.99", "percentile-99.999"} <= set(given)


def test_an_unknown_observer_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown calibrator 'entrpy'; did you mean entropy\?"):
        find_observer("entrpy")
