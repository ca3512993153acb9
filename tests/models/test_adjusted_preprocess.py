"""The preprocessing that an export asks for, made from the model's own, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exporter.models.preprocessing import adjusted_preprocess, with_image_size
from exporter.models.request import CHANNELS_ORDERS, INTERPOLATIONS, ModelRequest
from runtimes.errors import PlanError, UnknownName
from runtimes.preprocess import RESAMPLING, Preprocess

IMAGENET = Preprocess(256, (224, 224), "bilinear", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = replace(IMAGENET, mean=(0.25,), std=(0.5,))


def adjusted(own: Preprocess = IMAGENET, channels: int = 3, **asked: Any) -> Preprocess:
    return adjusted_preprocess(own, ModelRequest("resnet50", **asked), channels)


def test_what_is_not_asked_for_is_the_models_own() -> None:
    assert adjusted() == IMAGENET
    assert adjusted(replace(IMAGENET, channels_order="bgr")).channels_order == "bgr"
    assert adjusted(replace(IMAGENET, channels_order="bgr"), channels_order="rgb") == IMAGENET


@pytest.mark.parametrize(
    ("asked", "resize", "crop"),
    [
        ({"image_size": (112, 112)}, 128, (112, 112)),  # its ratio to the crop stays
        ({"image_size": (112, 160)}, (112, 160), (112, 160)),
        ({"resize": 300}, 300, (224, 224)),
        ({"resize": 224}, 224, (224, 224)),
        ({"resize": 256, "image_size": (224, 224)}, 256, (224, 224)),
        ({"resize": 200, "image_size": (112, 112)}, 200, (112, 112)),
        ({"resize": (224, 224)}, (224, 224), (224, 224)),
        ({"resize": (240, 400), "image_size": (224, 320)}, (240, 400), (224, 320)),
        ({"resize": 224, "image_size": (224, 320)}, 224, (224, 320)),  # pictures of 16:9 have no border
    ],
    ids=str,
)
def test_resize_wins_over_the_ratio_that_image_size_keeps(
    asked: dict[str, Any], resize: int | tuple[int, int], crop: tuple[int, int]
) -> None:
    assert adjusted(**asked) == replace(IMAGENET, resize=resize, crop=crop)


def test_a_size_that_pads_every_picture_with_black_is_refused() -> None:
    with pytest.raises(
        PlanError, match="at least the input's 224x224, got 200: every picture would get a black border"
    ):
        adjusted(resize=200)  # known once the model is
    with pytest.raises(PlanError, match="give --resize 224x320, or a smaller --image-size"):
        ModelRequest("resnet50", image_size=(224, 320), resize=(300, 300))  # known before
    with pytest.raises(PlanError, match="got 223: .* give --resize 224,"):
        ModelRequest("resnet50", image_size=(224, 320), resize=223)


def test_mean_and_std_of_pixels_up_to_255_are_scaled_to_1() -> None:
    caffe = adjusted(mean=(123.68, 116.779, 103.939), std=(1.0,), scale=255, channels_order="bgr")
    assert caffe.mean == (123.68 / 255, 116.779 / 255, 103.939 / 255)
    assert caffe.std == (1 / 255,) * 3
    pixels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    blue_first = pixels[..., ::-1].transpose(2, 0, 1) - np.array([103.939, 116.779, 123.68])[:, None, None]
    np.testing.assert_allclose(caffe.normalise(pixels), blue_first, rtol=0, atol=1e-4)
    tensorflow = adjusted(mean=(127.5,), std=(127.5,), scale=255)
    assert (tensorflow.mean, tensorflow.std) == ((0.5,) * 3, (0.5,) * 3)
    assert adjusted(mean=(0.5,), std=(0.5,), scale=1) == tensorflow


def test_mean_and_std_of_pixels_up_to_255_come_back_from_the_levels_that_a_graph_subtracts() -> None:
    for level in np.linspace(0, 255, 1021, dtype=np.float32).tolist():
        found = adjusted(GREY, 1, mean=(level,), std=(max(level, 1),), scale=255)
        assert np.float32(found.mean[0] * 255) == np.float32(level)
        assert np.float32(found.std[0] * 255) == np.float32(max(level, 1))


def test_bgr_is_for_three_channels() -> None:
    for channels in (1, 2, 4):
        with pytest.raises(PlanError, match=f"for a model of 3 input channels, got one of {channels}; leave it out"):
            adjusted(channels=channels, channels_order="bgr")
    assert adjusted(replace(IMAGENET, channels_order="bgr"), 1).channels_order == "rgb"
    assert adjusted(GREY, 3, channels_order="bgr").mean == (0.25,) * 3


def test_names_are_those_of_the_preprocessing_and_others_are_refused() -> None:
    assert set(INTERPOLATIONS) == set(RESAMPLING)
    for name in INTERPOLATIONS:
        assert adjusted(interpolation=name).interpolation == name
    for order in CHANNELS_ORDERS:
        assert adjusted(channels_order=order).channels_order == order
    with pytest.raises(UnknownName, match="unknown interpolation 'bicubik'; did you mean bicubic"):
        ModelRequest("resnet50", interpolation="bicubik")
    with pytest.raises(UnknownName, match="unknown order of channels 'rbg'; choose from bgr, rgb"):
        ModelRequest("resnet50", channels_order="rbg")
    with pytest.raises(PlanError, match="expected lanczos with antialias"):
        adjusted(replace(IMAGENET, antialias=False), interpolation="lanczos")


def test_the_own_steps_for_another_size_need_no_request() -> None:
    assert with_image_size(IMAGENET, (448, 448)) == replace(IMAGENET, resize=512, crop=(448, 448))


def test_it_is_made_without_pytorch() -> None:
    code = "import sys, exporter.models.preprocessing; assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
