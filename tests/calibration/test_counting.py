"""The calibration images in shards: the same counts, to the last bit, whoever works on them and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from counted_pictures import COUNT, GREY, TENSORS, counting_task
from memory_growth import peak_growth_below
from PIL import Image
from shuffled import Shuffled

from calibration import counting
from calibration.collect import collect
from calibration.counting import OpenCounter, count_images
from calibration.data import ImageSource, built_in
from calibration.distributed.local import Local
from calibration.distributed.shards import Executor
from calibration.histogram import Histogram
from calibration.sample import Sample, Seen
from runtimes.errors import BadInput, CalibrationError


def facts(histograms: dict[str, Histogram]) -> dict[str, tuple[int, float, bytes]]:
    return {name: (one.exponent, one.largest, one.counts.tobytes()) for name, one in histograms.items()}


@pytest.fixture(name="task", scope="module")
def task_fixture(tmp_path_factory: pytest.TempPathFactory) -> OpenCounter:
    return counting_task(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(name="whole", scope="module")
def whole_fixture(task: OpenCounter) -> tuple[Seen, dict[str, Histogram]]:
    """One pass over all of them, without shards."""
    sample = Sample(task.source, GREY)
    return sample.seen, collect(task.model, TENSORS, sample.batches(7))


@pytest.mark.parametrize(
    "executor", [Local(), Local(1), Shuffled(1, 0), Shuffled(2, 1), Shuffled(5, 2)], ids=lambda one: str(one)
)
def test_workers_and_order_change_no_bit(
    task: OpenCounter, whole: tuple[Seen, dict[str, Histogram]], executor: Executor
) -> None:
    told: list[int] = []
    seen, histograms = count_images(task, executor, told.append)
    assert (seen, facts(histograms)) == (whole[0], facts(whole[1]))
    assert (seen.images, sum(told)) == (COUNT - 1, COUNT)
    assert "040.png" in seen.unreadable[0]


def test_what_cannot_be_read_is_told_in_the_pictures_order(task: OpenCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "check_readable", lambda *_: None)
    source = replace(task.source, picture=Torn())
    seen, histograms = count_images(replace(task, source=source, tensors=()), Shuffled(2, 3))
    assert (seen.images, histograms) == (COUNT - 3, {})
    assert seen.unreadable == ["torn 5", "torn 40", "torn 100"]


def test_too_many_that_cannot_be_read_are_counted_over_all_shards(task: OpenCounter) -> None:
    source = replace(task.source, picture=Torn())
    with pytest.raises(CalibrationError, match="of the 101 pictures cannot be read, more than 1 %: torn"):
        count_images(replace(task, source=source, tensors=()), Shuffled(2, 3))


def test_two_parts_of_what_was_seen_add_up(task: OpenCounter) -> None:
    source = built_in("train")
    for cut in (0, 1, 30):
        parts = [Sample(source, GREY), Sample(source, GREY)]
        for part, places in zip(parts, (range(cut), range(cut, 40)), strict=True):
            assert sum(map(len, part.batches(4, places))) == len(places)
        both = parts[0].seen.merge(parts[1].seen)
        assert (both.images, len(both.distinct), both.noisy) == (40, 2, 0)
        assert both.fingerprint == parts[1].seen.merge(parts[0].seen).fingerprint


def test_a_photograph_is_looked_at_in_strips() -> None:
    """48 MB as Pillow holds it: copied whole, and in float32 to look for noise, it took 300 MB more."""
    photograph = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
    sample = Sample(
        ImageSource("photographs", 1, lambda place: photograph), replace(GREY, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    with peak_growth_below(40):
        assert len(list(sample.batches(2))) == 1


@dataclass(frozen=True)
class Torn:
    """Pictures of which a few cannot be read."""

    def __call__(self, place: int) -> Image.Image:
        if place in (5, 40, 100):
            raise BadInput(f"torn {place}")
        return built_in("train").image(place)
