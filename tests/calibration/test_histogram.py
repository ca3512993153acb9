"""The histogram of magnitudes has numpy's own counts, however the values are cut, ordered or sharded."""

from __future__ import annotations

import base64
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.histogram import BINS, SAMPLES, SMALLEST_EXPONENT, Histogram, exponent_above, sampling_step
from runtimes.errors import CalibrationError

Values = NDArray[np.float32]


def counted(*batches: Values) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch, "x")
    return histogram


def facts(histogram: Histogram) -> tuple[int, float, bytes]:
    """All that a histogram holds, to compare to the last bit."""
    return histogram.exponent, histogram.largest, histogram.counts.tobytes()


def drawn(kind: str, count: int = 20_000) -> Values:
    chance = np.random.default_rng(7)
    kinds: dict[str, Callable[[], Values]] = {
        "normal": lambda: chance.standard_normal(count, np.float32),
        "relu": lambda: np.maximum(chance.standard_normal(count, np.float32), np.float32(0)),
        "uniform": lambda: chance.random(count, np.float32) * np.float32(6),
        "heavy": lambda: chance.standard_cauchy(count).astype(np.float32),
        "wide": lambda: (chance.choice([-1.0, 1.0], count) * 2.0 ** chance.uniform(-40, 40, count)).astype(np.float32),
        "on the bins' edges": lambda: (chance.integers(-2048, 2048, count) / 256).astype(np.float32),
        "beside the bins' edges": lambda: np.nextafter(
            (chance.integers(1, 2048, count) / 256).astype(np.float32), np.float32(0)
        ),
        "tiny": lambda: chance.standard_normal(count, np.float32) * np.float32(2.0**-125),  # many are subnormal
        "huge": lambda: chance.uniform(-1, 1, count).astype(np.float32) * np.finfo(np.float32).max,
    }
    return kinds[kind]()


KINDS = ("normal", "relu", "uniform", "heavy", "wide", "on the bins' edges", "beside the bins' edges", "tiny", "huge")


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_numpys_over_the_final_range(kind: str) -> None:
    values = drawn(kind)
    histogram = counted(values)
    expected, edges = np.histogram(np.abs(values.astype(np.float64)), BINS, (0.0, 2.0**histogram.exponent))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.width == edges[1]
    np.testing.assert_allclose(histogram.centres, (edges[:-1] + edges[1:]) / 2, rtol=1e-12)
    assert histogram.largest == np.abs(values).max()
    assert 2.0 ** (histogram.exponent - 1) <= histogram.largest < 2.0**histogram.exponent
    assert histogram.used == int(np.flatnonzero(expected)[-1]) + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_may_be_cut_and_ordered_at_will(kind: str, seed: int) -> None:
    values = drawn(kind)
    chance = np.random.default_rng(seed)
    shuffled = chance.permutation(values)
    cuts = np.unique([0, len(values), *chance.integers(1, len(values), 20)])
    parts = [shuffled[start:end] for start, end in pairwise(cuts.tolist())]
    assert facts(counted(*parts)) == facts(counted(values))
    ascending = np.sort(np.abs(values)).reshape(50, -1)  # the range grows with every batch, and never
    assert facts(counted(*ascending)) == facts(counted(*ascending[::-1])) == facts(counted(values))


def test_the_shape_and_the_sign_of_values_do_not_matter() -> None:
    values = drawn("normal").reshape(20, 10, 10, 10)
    strided = np.repeat(values, 2, axis=3)[..., ::2]
    assert (
        facts(counted(values)) == facts(counted(-values)) == facts(counted(np.abs(values))) == facts(counted(strided))
    )
    assert facts(counted(values)) == facts(counted(values.ravel()))


def test_the_callers_array_stays_as_it_was() -> None:
    values = drawn("normal")
    before = values.copy()
    counted(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_merged_shards_are_the_whole_to_the_last_bit(kind: str, parts: int) -> None:
    values = np.sort(drawn(kind))  # so that each shard has another range
    shards = [counted(part) for part in np.array_split(values, parts)]
    for order in (shards, shards[::-1]):
        both = order[0]
        for shard in order[1:]:
            before = facts(both), facts(shard)
            merged = both.merge(shard)
            assert (facts(both), facts(shard)) == before
            both = merged
        assert facts(both) == facts(counted(values))


def test_of_a_large_image_every_few_values_one_is_counted_by_its_place_alone() -> None:
    images = np.random.default_rng(1).standard_normal((4, 3, 260, 260), np.float32)  # 202,800 values each
    images[2, 1, 130, 131] = -60  # may be left out of the counts, never of the range
    whole = counted(images)
    assert whole.largest == 60
    step = sampling_step(3 * 260 * 260)
    assert step == 7  # 3 to 6 divide 202,800, or a part of it
    shares = np.abs(images.reshape(4, -1)[:, ::step].astype(np.float64))
    np.testing.assert_array_equal(whole.counts, np.histogram(shares, BINS, (0.0, 2.0**whole.exponent))[0])
    assert (
        facts(counted(*images[:, None]))
        == facts(counted(images[3:], images[:3]))
        == facts(counted(images[:2]).merge(counted(images[2:])))
    )
    small = images[:, :, :147, :148]  # 65,268 values: few enough to count all
    assert counted(small).counts.sum() == small.size


STRIDES_AND_CHANNELS = [
    (1, (3, 1)),
    (2, (64, 32)),
    (4, (64, 256, 128)),
    (8, (128, 512, 256)),
    (16, (256, 1024)),
    (32, (512, 2048)),
]
"""Of a ResNet's activations: by how much a stage is smaller than the picture, and how many channels it may have."""


@pytest.mark.parametrize(
    "size",
    [28, 32, 96, 112, 160, 192, 224, 232, 240, 256, 288, 299, 320, 352, 384, 448, 512, (224, 320), (480, 640)],
    ids=str,
)
def test_columns_rows_and_borders_of_every_activation_are_sampled_alike(size: int | tuple[int, int]) -> None:
    picture = size if isinstance(size, tuple) else (size, size)
    for stride, channels in STRIDES_AND_CHANNELS:
        height, width = (-(-side // stride) for side in picture)
        for planes in channels:
            count = planes * height * width
            if count <= SAMPLES:
                continue
            places = np.arange(0, count, sampling_step(count))
            # As many as promised; where a step is passed over for what it divides, somewhat fewer.
            assert SAMPLES / 6 < len(places) < 2 * SAMPLES
            channel, row, column = np.unravel_index(places, (planes, height, width))
            for along, length in ((row, height), (column, width), (channel, planes)):
                fair = len(places) / length
                counts = np.bincount(along, minlength=length)
                assert np.abs(counts - fair).max() <= max(0.05 * fair, 2), (stride, planes)
            border = (row % (height - 1) == 0) | (column % (width - 1) == 0)
            assert border.mean() == pytest.approx(2 * (height + width - 2) / (height * width), rel=0.05), (
                stride,
                planes,
            )


def test_the_border_of_a_plane_of_28_columns_counts_for_its_share() -> None:
    images = np.zeros((2, 512, 28, 28), np.float32)
    images[..., 0] = 1  # one column of 28
    counts = counted(images).counts
    assert counts[np.flatnonzero(counts)[-1]] / counts.sum() == pytest.approx(1 / 28, rel=0.01)


def test_merging_with_nothing_and_with_zeros_changes_no_count() -> None:
    values, zeros = counted(drawn("normal")), counted(np.zeros(5, np.float32))
    assert facts(values.merge(Histogram())) == facts(Histogram().merge(values)) == facts(values)
    for merged in (values.merge(zeros), zeros.merge(values)):
        assert facts(merged) == facts(counted(drawn("normal"), np.zeros(5, np.float32)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 500, -1])
def test_nan_and_infinity_are_refused_with_the_tensors_name_and_count_nothing(wrong: float, place: int) -> None:
    values = drawn("normal", 1000)
    histogram = counted(values)
    before = facts(histogram)
    values[place] = wrong
    with pytest.raises(CalibrationError, match="'layer3.1.relu.out' holds NaN or infinite values"):
        histogram.update(values, "layer3.1.relu.out")
    assert facts(histogram) == before


def test_a_tensor_of_zeros_is_counted_and_has_no_range() -> None:
    histogram = counted(np.zeros((4, 8), np.float32), -np.zeros((2, 2), np.float32))
    assert (histogram.exponent, histogram.largest, histogram.used) == (SMALLEST_EXPONENT, 0.0, 1)
    assert histogram.counts[0] == histogram.counts.sum() == 36
    assert (Histogram().used, Histogram().largest) == (0, 0.0)


def test_denormals_are_held_in_the_smallest_range_and_leave_it_when_it_grows() -> None:
    smallest, tiny = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).smallest_normal
    values = np.array([smallest, -smallest, tiny / 2, -tiny / 4], np.float32)
    histogram = counted(values)
    assert histogram.exponent == SMALLEST_EXPONENT
    assert histogram.largest == tiny / 2
    expected = np.histogram(np.abs(values.astype(np.float64)), BINS, (0.0, 2.0**SMALLEST_EXPONENT))[0]
    np.testing.assert_array_equal(histogram.counts, expected)
    assert facts(counted(values, np.ones(1, np.float32))) == facts(counted(np.append(values, np.float32(1))))


def test_the_largest_floats_there_are_have_a_range() -> None:
    values = np.array([0, 1, np.finfo(np.float32).max, -np.finfo(np.float32).max / 2], np.float32)
    histogram = counted(values)
    assert (histogram.exponent, histogram.largest) == (128, float(np.finfo(np.float32).max))
    assert histogram.counts.sum() == 4
    assert histogram.counts[-1] == 1
    assert np.isfinite(histogram.centres).all()


@pytest.mark.parametrize(
    ("value", "exponent"),
    [(0.0, SMALLEST_EXPONENT), (0.5, 0), (0.75, 0), (1.0, 1), (1.5, 1), (2.0, 2), (3.99, 2), (1e-40, -126)],
)
def test_the_range_is_the_smallest_power_of_two_above(value: float, exponent: int) -> None:
    assert exponent_above(value) == exponent


@pytest.mark.parametrize("kind", KINDS)
def test_text_gives_the_same_histogram_back_and_is_short(kind: str) -> None:
    histogram = counted(drawn(kind))
    text = histogram.text()
    assert facts(Histogram.from_text(histogram.exponent, text, histogram.largest)) == facts(histogram)
    assert text == counted(drawn(kind)[::-1]).text()
    assert len(text) < BINS * 8 / 2
    assert facts(Histogram.from_text(0, Histogram().text(), 0.0)) == (0, 0.0, bytes(BINS * 8))


def compressed(counts: NDArray[np.int64]) -> str:
    return base64.b64encode(zlib.compress(counts.tobytes())).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        counted(drawn("normal")).text()[:-8],
        base64.b64encode(zlib.compress(b"seven b")).decode(),
        compressed(np.zeros(BINS - 1, np.int64)),
        compressed(np.zeros(0, np.int64)),
        compressed(np.full(BINS, -1, np.int64)),
        compressed(np.zeros(BINS + 1, np.int64)),
        compressed(np.full(BINS, 1 << 62, np.int64)),
    ],
    ids=[
        "empty",
        "no base64",
        "no zlib",
        "cut short",
        "no whole numbers",
        "a bin too few",
        "no bins",
        "negative",
        "a bin too many",
        "beyond adding",
    ],
)
def test_damaged_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        Histogram.from_text(0, text, 1.0)


def test_counts_that_unpack_to_gigabytes_are_refused_before_they_do() -> None:
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(100)), packer.flush()])  # 100 MB in 100 kB
    text = base64.b64encode(packed).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="expected a histogram of 2048 counts, got more"):
        Histogram.from_text(0, text, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("exponent", [SMALLEST_EXPONENT - 1, 129, 10**9])
def test_a_range_that_no_float_has_is_a_value_error(exponent: int) -> None:
    with pytest.raises(ValueError, match=f"expected a histogram's exponent from -126 to 128, got {exponent}"):
        Histogram.from_text(exponent, compressed(np.ones(BINS, np.int64)), 0.0)
