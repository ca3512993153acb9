"""The pictures that are calibrated on: batched, fingerprinted, and refused where nothing can be measured from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data import ImageSource, built_in, open_source, with_channels
from calibration.sample import Sample, Seen, neighbour_correlation
from runtimes.errors import BadInput, CalibrationError
from runtimes.preprocess import Preprocess

GREY = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))
ALL = np.arange(1000)


def exhausted(source: ImageSource, size: int = 4, preprocess: Preprocess = GREY) -> Seen:
    sample = Sample(source, preprocess)
    for _ in sample.batches(size):
        pass
    return sample.seen


def source_of(picture: Callable[[int], Image.Image], count: int) -> ImageSource:
    return ImageSource("set", count, picture)


def ramp(place: int, size: tuple[int, int] = (30, 40)) -> Image.Image:
    """A soft picture, another for each place."""
    return Image.linear_gradient("L").resize(size).rotate(place % 4 * 90).point(lambda value: (value + place) // 2)


def folder_with_broken(folder: Path, broken: list[int], count: int = 600) -> ImageSource:
    for place in range(count):
        path = folder / f"{place:03}.jpg"
        ramp(place).save(path)
        if place in broken:
            path.write_bytes(path.read_bytes()[:40])
    return open_source(str(folder))


@pytest.mark.parametrize(("count", "size"), [(64, 4), (65, 4), (3, 4), (10, 1), (7, 100)])
def test_batches_hold_every_picture_in_order_and_only_the_last_may_be_smaller(count: int, size: int) -> None:
    source = built_in("train").subset(ALL[:count])
    sample = Sample(source, GREY)
    batches = list(sample.batches(size))
    assert [len(batch) for batch in batches] == [size] * (count // size) + ([count % size] if count % size else [])
    assert {batch.dtype.name for batch in batches} == {"float32"}
    np.testing.assert_array_equal(np.concatenate(batches), GREY.batch([source.image(place) for place in range(count)]))
    assert (sample.seen.images, sample.seen.unreadable) == (count, [])


def test_the_fingerprint_is_of_the_content_whatever_its_order_and_batches() -> None:
    source = built_in("train").subset(ALL[:100])
    fingerprint = exhausted(source).fingerprint
    assert len(fingerprint) == 64
    assert int(fingerprint, 16) > 0
    assert exhausted(source.subset(ALL[:100][::-1]), 7).fingerprint == fingerprint
    assert (
        exhausted(source, preprocess=Preprocess(8, (8, 8), "nearest", True, (0.0,), (1.0,))).fingerprint == fingerprint
    )
    assert exhausted(source.subset(ALL[:99])).fingerprint != fingerprint
    assert exhausted(source.subset(np.append(ALL[:99], 0))).fingerprint != fingerprint
    one_pixel = source_of(lambda place: changed(source.image(place)) if place == 50 else source.image(place), 100)
    assert exhausted(one_pixel).fingerprint != fingerprint


def changed(image: Image.Image) -> Image.Image:
    level = image.getpixel((0, 0))
    assert isinstance(level, int)
    image.putpixel((0, 0), level ^ 1)
    return image


def test_the_same_bytes_in_another_shape_or_mode_are_another_picture() -> None:
    pixels = np.arange(36, dtype=np.uint8)
    shapes = [pixels.reshape(6, 6), pixels.reshape(4, 9), pixels.reshape(9, 4), pixels.reshape(3, 4, 3)]
    sources = [source_of(partial(lambda pixels, place: Image.fromarray(pixels), shape), 1) for shape in shapes]
    assert len({exhausted(source).fingerprint for source in sources}) == 4


def test_the_shards_fingerprints_add_up_to_the_wholes() -> None:
    source = built_in("train").subset(ALL[:90])
    parts = [exhausted(source.subset(places)).fingerprint for places in (ALL[:10], ALL[10:50], ALL[50:90])]
    assert f"{sum(int(part, 16) for part in parts) % 2**256:064x}" == exhausted(source).fingerprint


def test_one_broken_picture_among_600_is_named_and_left_out(tmp_path: Path) -> None:
    source = folder_with_broken(tmp_path, [417])
    sample = exhausted(source)
    assert sample.images == 599
    assert len(sample.unreadable) == 1
    assert str(tmp_path / "417.jpg") in sample.unreadable[0]
    sample.check(allow_few=False)
    assert sample.fingerprint == exhausted(source.subset(np.delete(np.arange(600), 417))).fingerprint


def test_more_than_one_broken_picture_in_a_hundred_is_an_error_that_names_some(tmp_path: Path) -> None:
    source = folder_with_broken(tmp_path, [*range(100, 200)])
    with pytest.raises(
        CalibrationError, match=r"7 of the 600 pictures cannot be read, more than 1 %: .*100\.jpg.*101\.jpg"
    ):
        exhausted(source)
    six = source.subset(np.array([*range(100), *range(100, 106), *range(200, 600), *range(94)]))
    assert len(exhausted(six).unreadable) == 6  # exactly one in a hundred


def test_a_mistake_while_decoding_is_not_taken_for_a_broken_picture() -> None:
    def mistaken(place: int) -> Image.Image:
        raise KeyError(place)

    with pytest.raises(KeyError):
        exhausted(source_of(mistaken, 10))


@pytest.mark.parametrize("count", [0, 1, 63])
def test_fewer_than_64_pictures_are_refused_unless_they_are_allowed(count: int) -> None:
    sample = exhausted(built_in("train").subset(ALL[:count]))
    with pytest.raises(
        CalibrationError,
        match=rf"expected at least 64 calibration images, got {count}; give more, or --allow-few-images",
    ):
        sample.check(allow_few=False)
    if count:
        sample.check(allow_few=True)
    else:
        with pytest.raises(CalibrationError, match="expected at least"):
            sample.check(allow_few=True)
    exhausted(built_in("train").subset(ALL[:64])).check(allow_few=False)


def test_one_picture_repeated_is_refused_however_many_are_allowed() -> None:
    picture = built_in("train").image(0)
    for allow_few in (False, True):
        with pytest.raises(CalibrationError, match="all 64 calibration images are one picture repeated"):
            exhausted(source_of(lambda place: picture, 64)).check(allow_few=allow_few)
    exhausted(source_of(lambda place: picture if place else built_in("train").image(1), 64)).check(allow_few=False)


@pytest.mark.parametrize("shape", [(28, 28), (224, 224), (64, 64, 3)])
def test_random_noise_is_refused(shape: tuple[int, ...]) -> None:
    chance = np.random.default_rng(0)
    noise = [Image.fromarray(chance.integers(0, 256, shape, np.uint8)) for _ in range(64)]
    for allow_few in (False, True):
        with pytest.raises(CalibrationError, match="look like random noise"):
            exhausted(source_of(lambda place: noise[place], 64)).check(allow_few=allow_few)


def test_some_noise_among_real_pictures_is_taken() -> None:
    chance = np.random.default_rng(0)
    train = built_in("train")
    mixed = [
        Image.fromarray(chance.integers(0, 256, (28, 28), np.uint8)) if place < 20 else train.image(place)
        for place in range(64)
    ]
    exhausted(source_of(lambda place: mixed[place], 64)).check(allow_few=False)


def test_every_built_in_picture_is_far_from_noise_and_noise_from_every_picture() -> None:
    train = built_in("train")
    assert min(neighbour_correlation(train.image(place)) for place in range(200)) > 0.3
    chance = np.random.default_rng(0)
    assert (
        max(abs(neighbour_correlation(Image.fromarray(chance.integers(0, 256, (64, 64), np.uint8)))) for _ in range(50))
        < 0.1
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (5, 300)], ids=str)
def test_pictures_smaller_than_the_crop_are_taken(size: tuple[int, int]) -> None:
    whole = Preprocess(None, (32, 32), "bilinear", True, (0.0,), (1.0,))
    sample = Sample(source_of(lambda place: ramp(place, size), 64), whole)
    batches = list(sample.batches(16))
    assert [batch.shape for batch in batches] == [(16, 1, 32, 32)] * 4
    sample.seen.check(allow_few=False)


def test_pictures_are_decoded_ahead_but_not_all_at_once() -> None:
    asked: list[int] = []

    def picture(place: int) -> Image.Image:
        asked.append(place)
        return ramp(place)

    batches = Sample(source_of(picture, 1000), GREY).batches(4)
    next(batches)
    assert 4 <= len(asked) <= 32
    batches.close()  # type: ignore[attr-defined]  # a generator is an iterator that can be closed


def test_what_cannot_be_decoded_lends_its_reason() -> None:
    def picture(place: int) -> Image.Image:
        if place == 3:
            raise BadInput("cannot read the picture 3.jpg: it is torn")
        return ramp(place)

    assert exhausted(source_of(picture, 100)).unreadable == ["cannot read the picture 3.jpg: it is torn"]


def test_a_strip_or_a_lack_of_memory_makes_a_picture_unreadable_and_ends_nothing() -> None:
    def picture(place: int) -> Image.Image:
        if place == 5:
            raise MemoryError
        return ramp(place)

    sample = exhausted(source_of(picture, 100))
    assert (sample.images, sample.unreadable) == (
        99,
        ["cannot read the picture set 5: there is not enough memory for it"],
    )


def test_arrays_of_many_channels_are_sampled_and_told_apart() -> None:
    steps = Preprocess(28, (28, 28), "bilinear", True, (0.3,) * 5, (0.3,) * 5)
    source = with_channels(built_in("train"), 5)
    sample = Sample(source.subset(ALL[:64]), steps)
    assert [batch.shape for batch in sample.batches(16)] == [(16, 5, 28, 28)] * 4
    sample.seen.check(allow_few=False)
    assert sample.seen.fingerprint != exhausted(source.subset(ALL[1:65]), preprocess=steps).fingerprint
    noise = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 5), np.uint8)
    with pytest.raises(CalibrationError, match="look like random noise"):
        exhausted(replace(source, picture=lambda place: noise[place]).subset(ALL[:64]), preprocess=steps).check(
            allow_few=False
        )
