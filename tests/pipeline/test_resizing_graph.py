"""The graph that resizes and crops: to the last bit what Pillow makes of a picture, and proven to be so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from any_size import noise, preprocess
from numpy.typing import NDArray
from PIL import Image

from calibration.one_size import fitting_size
from exporter.graph.pillow_resize import check_resizable, resizing_graph
from exporter.pipeline import resize_proof as pictures
from exporter.pipeline.resize_proof import check_resizing, images_of_one_size, trial_sizes
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import ExportError, PlanError
from runtimes.preprocess import Preprocess

SIZES = {
    "the crop": (28, 24),
    "shrunk": (97, 120),
    "shrunk by little": (30, 31),
    "enlarged": (9, 11),
    "standing, more than twice as high": (151, 33),
    "lying": (20, 171),
    "smaller than the crop": (27, 5),
    "higher and narrower than the crop": (90, 13),
    "one pixel": (1, 1),
    "a strip": (3, 200),
    "large": (1080, 1920),
}
RESIZES = {
    "the shorter side": 32,
    "the crop's side": 24,
    "height and width": (30, 41),
    "smaller than the crop": (15, 50),
    "none": None,
}


def resized(runtime: OnnxRuntime, steps: Preprocess, picture: Image.Image) -> NDArray[Any]:
    """The graph's levels (height, width, channels) of one picture."""
    (levels,) = runtime.run({"picture": steps.picture(picture)[None]}).values()
    return np.asarray(levels[0].transpose(1, 2, 0))


# --- the resizing alone ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_resizes_crops_and_pads_to_the_bit_as_pillow_does(
    interpolation: str, resize: Any, channels: int
) -> None:
    steps = preprocess(resize, interpolation, channels)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        for size in SIZES.values():
            picture = noise(*size, channels)
            np.testing.assert_array_equal(resized(runtime, steps, picture), steps.pixels(picture), err_msg=str(size))


def test_all_pictures_of_a_batch_are_resized() -> None:
    steps = preprocess()
    batch = np.random.default_rng(0).integers(0, 256, (3, 45, 61, 3), np.uint8)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        (levels,) = runtime.run({"picture": batch}).values()
    np.testing.assert_array_equal(levels.transpose(0, 2, 3, 1), [steps.pixels(Image.fromarray(one)) for one in batch])


@pytest.mark.parametrize("size", [(2, 1500), (9001, 40), (12000, 12)])
def test_beyond_8192_pixels_the_cubic_is_no_more_than_two_levels_off(size: tuple[int, int]) -> None:
    """The resized side counts too: a strip of 2x1500 becomes 32x24000."""
    steps, picture = preprocess(32, "bicubic"), noise(*size)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        differences = np.abs(resized(runtime, steps, picture) - steps.pixels(picture))
    assert differences.max() <= 2
    assert (differences > 0).mean() < 0.2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_pillows_columns_come_first_whatever_its_version(size: tuple[int, int]) -> None:
    """Pillow 13 starts with the rows where a picture loses more than twice as many of them as of columns."""
    picture, steps = noise(*size), preprocess((30, 41), crop=(30, 41))
    by_hand = picture.resize((41, picture.height), Image.Resampling.BILINEAR).resize(
        (41, 30), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(steps.pixels(picture), np.asarray(by_hand))


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (preprocess(interpolation="nearest"), "nearest"),
        (preprocess(interpolation="lanczos"), "lanczos"),
        (preprocess(antialias=False), "bilinear without antialias"),
    ],
    ids=str,
)
def test_a_resize_that_the_graph_does_not_have_is_refused_with_what_to_do(steps: Preprocess, found: str) -> None:
    with pytest.raises(
        PlanError,
        match=f"resizes bilinear or bicubic with antialias, and the model wants {found}; take --uint8-input without full",
    ):
        check_resizable(steps)
    check_resizable(replace(steps, resize=None))  # then it matters to nobody


def test_a_model_of_four_channels_takes_no_pictures() -> None:
    with pytest.raises(
        PlanError, match="takes pictures, of 1 or 3 channels, and the model has 4; take --uint8-input without full"
    ):
        check_resizable(preprocess(mean=(0.0,) * 4, std=(1.0,) * 4))


# --- the proof ---


@pytest.mark.parametrize(
    "other",
    [{"resize": 33}, {"resize": (32, 32)}, {"crop": (28, 23)}, {"interpolation": "bicubic"}, {"resize": None}],
    ids=lambda other: str(other),
)
def test_a_graph_that_resizes_otherwise_is_caught(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = preprocess()
    check_resizing(steps, 20, [noise(40, 50)])
    graph = resizing_graph(replace(steps, **{**other, "crop": steps.crop}) if "crop" not in other else shifted(), 20)
    monkeypatch.setattr(pictures, "resizing_graph", lambda steps, opset: graph)
    with pytest.raises(
        ExportError,
        match=r"expected the graph to resize a picture of \d+x\d+ to the pixels of Pillow .* that differ, by up to",
    ):
        check_resizing(steps, 20, [noise(40, 50)])


def shifted() -> Preprocess:
    """Crops a row further down."""
    return preprocess(resize=(34, 32))


def test_the_sizes_that_are_tried_are_larger_smaller_and_of_every_shape() -> None:
    for steps in (preprocess(), preprocess((30, 41)), preprocess(None)):
        sizes = trial_sizes(steps)
        assert {height > width for height, width in sizes} == {True, False}
        assert {height < steps.crop[0] for height, _ in sizes} == {True, False}
        assert any(height > 2 * width for height, width in sizes)
        height, width = fitting_size(steps)
        assert (height, width) != steps.crop


def test_pictures_of_several_sizes_are_proven_with_at_one() -> None:
    steps = preprocess()
    images = images_of_one_size([noise(40, 50), noise(400, 300)], None, steps)
    assert images.pixels is not None
    assert images.pixels.shape == (2, *fitting_size(steps), 3)
    np.testing.assert_array_equal(images.inputs, steps.inputs_from_pixels(images.pixels, any_size=True))
    alike = images_of_one_size([noise(40, 30), noise(40, 30)], None, steps)
    assert alike.pixels is not None
    assert alike.pixels.shape == (2, 40, 30, 3)
