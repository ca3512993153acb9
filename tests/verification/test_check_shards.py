"""`check --data` in shards: the same verdict whoever runs them and in whatever order, and no picture is kept."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Made
from PIL import Image
from shuffled import Shuffled

from calibration.data import ImageSource, built_in, open_source
from calibration.one_size import bring_to_one_size, fitting_size
from exporter.verification.answers import OpenModel
from exporter.verification.check import CheckResult, check_bundle
from exporter.verification.pictures import PictureInputs, open_pictures
from exporter.verification.plan import CheckPlan
from runtimes.errors import BadInput
from runtimes.preprocess import PIXELS, Preprocess
from runtimes.specs import PICTURE, TensorSpec

COUNT = 150
COLOUR = Preprocess(24, (20, 20), "bilinear", True, (0.5,) * 3, (0.25,) * 3)
ANY_SIZE = TensorSpec("input", PIXELS, ("batch", *PICTURE, 3))


@pytest.fixture(name="plan", scope="module")
def plan_fixture(good: Made) -> CheckPlan:
    return CheckPlan(good[1].bundle, ("onnxruntime",), asked=True, data="built-in", images=COUNT)


@pytest.fixture(name="apart", scope="module")
def apart_fixture(plan: CheckPlan) -> CheckResult:
    """The check in processes of its own."""
    return check_bundle(plan)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_and_order_change_nothing_but_the_seconds(plan: CheckPlan, apart: CheckResult, workers: int) -> None:
    found = check_bundle(plan, executor=Shuffled(workers, seed=workers))
    assert timeless(found) == timeless(apart)
    assert (found.check.images, found.check.backends[0].verdict) == (COUNT, "ok")
    np.testing.assert_array_equal(found.evidence.outputs["logits"], apart.evidence.outputs["logits"])


def timeless(found: CheckResult) -> object:
    return replace(found.check, backends=tuple(replace(one, seconds=0.0) for one in found.check.backends))


def test_another_bundle_can_be_the_reference(plan: CheckPlan) -> None:
    found = check_bundle(replace(plan, against=plan.bundle), executor=Shuffled(2, seed=0))
    (one,) = found.check.backends
    assert one.answer is not None
    assert one.answer.errors is not None
    assert (one.verdict, one.answer.errors.exact) == ("ok", COUNT * 10)


def test_a_task_holds_no_pictures(plan: CheckPlan, tmp_path: Path) -> None:
    for place in range(40):
        built_in("test").image(place).resize((200, 200)).save(tmp_path / f"{place}.png")
    pictures = open_pictures(plan.bundle, str(tmp_path), 40)
    inputs = PictureInputs(pictures.source, COLOUR, ANY_SIZE, pictures.are_alike)
    assert len(pickle.dumps(OpenModel(plan.bundle, None, inputs, plan))) < 20_000


@pytest.mark.parametrize("sizes", [[(30, 30)], [(30, 30), (31, 30)], [(30, 30), (90, 61)], [(400, 300)]], ids=str)
def test_pictures_of_any_size_are_brought_to_one_as_all_at_once(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    height, width = fitting_size(COLOUR)
    for place, size in enumerate((*sizes, *sizes, (width, height) if len(sizes) > 1 else sizes[0])):
        built_in("test").image(place).resize(size).save(tmp_path / f"{place}.png")
    source = open_source(str(tmp_path))
    images = [source.image(place).convert("RGB") for place in range(source.count)]
    inputs = PictureInputs(source, COLOUR, ANY_SIZE, len({image.size for image in images}) == 1)
    expected = np.stack([np.asarray(image) for image in bring_to_one_size(images, COLOUR)])
    np.testing.assert_array_equal(inputs[:], expected)
    np.testing.assert_array_equal(inputs[1:3], expected[1:3])


def test_a_picture_that_was_changed_meanwhile_is_named() -> None:
    def picture(place: int) -> Image.Image:
        raise BadInput("cannot read the picture 3.jpg: it is torn")

    inputs = PictureInputs(ImageSource("set", 9, picture), COLOUR, ANY_SIZE, are_alike=True)
    with pytest.raises(BadInput, match="3.jpg: it is torn; it could be read before: leave the pictures alone"):
        inputs[2:4]
