"""`--resize`, `--interpolation`, `--channels-order` and `--scale`: exports answer what Caffe's formula gives by hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from exporter.verification.report.reproduce import export_lines
from runtimes import Bundle, open_runtime

WEIGHT = np.array([[3.0, 1, -2], [-1, 4, 1], [2, -3, 5], [0.5, 2, 1]]) / 100
MEAN = (123.68, 116.779, 103.939)
"""ImageNet's in R, G, B order on pixels of 0..255, as Caffe's networks subtract it."""
CAFFE = ("--mean", ",".join(map(str, MEAN)), "--std", "1", "--scale", "255", "--channels-order", "bgr")
FACTORY = f"""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1, bias=False)
        self.conv1.weight = nn.Parameter(torch.tensor({WEIGHT.tolist()})[:, :, None, None])

    def forward(self, x):
        return self.conv1(x).mean((2, 3))

class Grouped(Net):
    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        self.before.weight = nn.Parameter(torch.ones(3, 1, 1, 1))

    def forward(self, x):
        return super().forward(self.before(x))
"""
"""Networks whose logits are sums of the mean over each input channel: their order and their scale are seen."""
numbers = count()


def colours(height: int, width: int) -> Image.Image:
    """A picture of smooth colours, red above all, so that resizing changes it little."""
    small = np.random.default_rng(0).integers([120, 60, 0], [256, 180, 90], (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_caffes_formula(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The logits for pixels (height, width, channels) in R, G, B order: B, G, R, of 0..255, minus the mean."""
    blue_first = pixels.astype(np.float64)[..., ::-1] - np.array(MEAN)[::-1]
    return np.asarray(WEIGHT @ blue_first.mean((0, 1)))


def logits_of(bundle: Bundle, picture: Image.Image, backend: str = "onnxruntime") -> NDArray[np.float32]:
    with open_runtime(bundle, backend) as runtime:
        (outputs,) = runtime.stream([picture])
    logits: NDArray[np.float32] = outputs["logits"][0]
    return logits


@pytest.fixture
def export(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """Export a network of FACTORY with the options given."""
    package = f"nets_{next(numbers)}"  # Python imports a name once
    (tmp_path / f"{package}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*options: str, network: str = "Net") -> Bundle:
        ran = run(
            f"{package}:{network}", *options, "--batch", "1:2:4", "--no-report", "--output", "out", "--force", "--quiet"
        )
        assert ran.code == 0, ran.err
        return Bundle.open(tmp_path / "out")

    return call


# --- Caffe's networks ---


@pytest.mark.parametrize("network", ["Net", "Grouped"])
@pytest.mark.parametrize("uint8", [(), ("--uint8-input",), ("--uint8-input", "full")], ids=lambda one: " ".join(one))
def test_a_network_of_caffes_answers_by_caffes_formula(
    export: Callable[..., Bundle], uint8: tuple[str, ...], network: str
) -> None:
    bundle = export("--image-size", "32", *CAFFE, *uint8, network=network)
    steps = bundle.manifest.preprocess
    assert steps.mean == tuple(value / 255 for value in MEAN)
    assert steps.std == (1 / 255,) * 3
    assert (steps.channels_order, steps.resize, steps.crop) == ("bgr", 32, (32, 32))
    picture = colours(32, 32)
    expected = by_caffes_formula(np.asarray(picture))
    assert np.abs(expected - by_caffes_formula(np.asarray(picture)[..., ::-1])).max() > 1  # red first would be seen
    np.testing.assert_allclose(logits_of(bundle, picture), expected, rtol=0, atol=1e-4)
    assert bundle.manifest.parity.ok


def test_the_reference_takes_blue_first_and_so_do_golden_inputs_in_float(export: Callable[..., Bundle]) -> None:
    bundle = export("--image-size", "32", *CAFFE)
    picture = colours(32, 32)
    inputs = bundle.manifest.preprocess(picture)
    planes = np.asarray(picture, np.float64)[..., ::-1] - np.array(MEAN)[::-1]
    np.testing.assert_allclose(inputs, planes.transpose(2, 0, 1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        logits_of(bundle, picture, "pytorch"), by_caffes_formula(np.asarray(picture)), rtol=0, atol=1e-4
    )
    golden = np.load(bundle.file("golden.npz"))
    levels = golden["inputs"] + np.array(MEAN)[::-1, None, None]  # the built-in pictures are grey
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert np.ptp(levels, axis=1).max() < 1e-4


def test_a_network_that_takes_pixels_of_255_as_they_are_gets_them(export: Callable[..., Bundle]) -> None:
    bundle = export("--image-size", "32", "--mean", "0", "--std", "1", "--scale", "255", "--uint8-input")
    picture = colours(32, 32)
    expected = WEIGHT @ np.asarray(picture, np.float64).mean((0, 1))
    np.testing.assert_allclose(logits_of(bundle, picture), expected, rtol=1e-6)
    assert bundle.manifest.preprocess.channels_order == "rgb"


# --- resizing ---


@pytest.mark.parametrize("uint8", [(), ("--uint8-input", "full")], ids=lambda one: " ".join(one))
@pytest.mark.parametrize(
    ("options", "size", "box"),
    [
        (("--resize", "40", "--image-size", "32"), (60, 40), (14, 4, 46, 36)),
        (("--resize", "32x32", "--image-size", "32"), (32, 32), (0, 0, 32, 32)),
        (("--image-size", "32"), (48, 32), (8, 0, 40, 32)),
    ],
    ids=lambda one: " ".join(map(str, one)),
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_resized_as_it_is_said(
    export: Callable[..., Bundle],
    uint8: tuple[str, ...],
    options: tuple[str, ...],
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: str,
) -> None:
    bundle = export(*options, "--interpolation", interpolation, *CAFFE, *uint8)
    noise = np.random.default_rng(1).integers(0, 256, (80, 120, 3)).astype(np.uint8)
    kinds = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic")}
    made = {
        name: by_caffes_formula(np.asarray(Image.fromarray(noise).resize(size, kind).crop(box)))
        for name, kind in kinds.items()
    }
    found = logits_of(bundle, Image.fromarray(noise))
    np.testing.assert_allclose(found, made[interpolation], rtol=0, atol=2e-3)
    other = next(name for name in kinds if name != interpolation)
    assert np.abs(found - made[other]).max() > 10 * np.abs(found - made[interpolation]).max()


def test_nearest_takes_a_pixel_as_it_is(export: Callable[..., Bundle]) -> None:
    bundle = export("--resize", "36", "--image-size", "32", "--interpolation", "nearest")
    assert (bundle.manifest.preprocess.resize, bundle.manifest.preprocess.interpolation) == (36, "nearest")
    noise = np.random.default_rng(1).integers(0, 256, (72, 108, 3)).astype(np.uint8)
    expected = WEIGHT @ (noise[1::2, 1::2][2:34, 11:43] / 255).mean((0, 1))
    np.testing.assert_allclose(logits_of(bundle, Image.fromarray(noise)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_a_graph_that_would_have_to_resize_otherwise_than_it_can_is_refused(run: Any, interpolation: str) -> None:
    ran = run("resnet20", "--uint8-input", "full", "--interpolation", interpolation)
    assert ran.code == 2
    assert f"and the model wants {interpolation}; take --uint8-input without full" in ran.error


# --- what it leaves behind ---


def test_the_printed_command_makes_the_same_bundle_again(export: Callable[..., Bundle]) -> None:
    bundle = export("--image-size", "32x40", "--resize", "48x50", "--interpolation", "lanczos", *CAFFE)
    first = bundle.manifest
    words = shlex.split(export_lines(first)[0].replace("\\\n", ""))
    text = " ".join(words)
    assert "--resize 48x50 --interpolation lanczos" in text
    assert "--channels-order bgr" in text
    assert "--scale" not in words
    again = export(*words[2:]).manifest
    assert again.preprocess == first.preprocess
    assert {name: file.sha256 for name, file in again.files.items()} == {
        name: file.sha256 for name, file in first.files.items()
    }


def test_inspect_says_in_which_order_the_network_takes_the_channels(export: Callable[..., Bundle], deploy: Any) -> None:
    shown = deploy("inspect", export("--image-size", "32", *CAFFE).folder).out
    assert re.search(r"preprocess +resize 32 \(bilinear\), .*, taken in the order B, G, R", shown)
    assert "in the order" not in deploy("inspect", export("--image-size", "32").folder).out


def test_random_weights_take_their_statistics_from_pictures_in_the_network_s_order(tmp_path: Path) -> None:
    from exporter.models.loading import load_model
    from exporter.models.request import ModelRequest

    found = [
        load_model(ModelRequest("resnet18", weights="random", image_size=(32, 32), channels_order=order))
        for order in (None, "rgb", "bgr")
    ]
    states = [loaded.module.state_dict()["bn1.running_mean"] for loaded in found]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
