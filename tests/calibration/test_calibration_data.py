"""The images that ship with the package: how many, of what, and that they stay what they are."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import onnx.parser
import pytest
from PIL import Image

from calibration.collect import collect
from calibration.data import FASHION_MNIST_CLASSES, built_in

Split = Literal["train", "test"]
FACTS: dict[Split, tuple[int, str]] = {
    "train": (1000, "9b8fbc35f8a9173500987de693372ed02b64ebf2480bd86fe423a3ee3d7422ec"),
    "test": (2000, "09bbac78738f0229a68f7ca74e62665d7fb34f45ea7a3509ab5c4a202c1370de"),
}
"""Of each split: how many pictures, and sha256 of their content."""


def pictures(split: Split) -> list[Image.Image]:
    source = built_in(split)
    return [source.image(place) for place in range(source.count)]


@pytest.mark.parametrize("split", FACTS)
def test_the_built_in_images_are_as_many_and_as_grey_as_they_say(split: Split) -> None:
    source = built_in(split)
    assert source.name == f"built-in ({split})"
    assert source.count == FACTS[split][0]
    for place in (0, 1, source.count - 1):
        assert (source.image(place).mode, source.image(place).size) == ("L", (28, 28))
    with pytest.raises(IndexError):
        source.image(source.count)


@pytest.mark.parametrize("split", FACTS)
def test_the_pictures_and_their_order_stay_the_same(split: Split) -> None:
    digest = hashlib.sha256()
    for image in pictures(split):
        digest.update(image.tobytes())
    assert digest.hexdigest() == FACTS[split][1]


@pytest.mark.parametrize("split", FACTS)
def test_every_picture_has_a_label_and_every_label_a_name(split: Split) -> None:
    source = built_in(split)
    assert source.classes == FASHION_MNIST_CLASSES
    assert len(set(FASHION_MNIST_CLASSES)) == 10
    assert source.labels is not None
    assert (source.labels.shape, source.labels.dtype.name) == ((source.count,), "int64")
    assert set(source.labels.tolist()) == set(range(10))


def test_training_images_are_a_hundred_of_each_class_and_test_images_nearly_balanced() -> None:
    train, test = built_in("train").labels, built_in("test").labels
    assert train is not None
    assert test is not None
    assert np.bincount(train).tolist() == [100] * 10
    counts = np.bincount(test)
    assert counts.min() > 150
    assert counts.max() < 250


def test_labels_belong_to_their_pictures() -> None:
    source = built_in("train")
    assert source.labels is not None
    pixels = np.stack([np.asarray(image, np.float64) for image in pictures("train")])
    coverage = (pixels > 40).mean((1, 2))
    mean = {name: coverage[source.labels == index].mean() for index, name in enumerate(FASHION_MNIST_CLASSES)}
    assert min(mean, key=lambda name: float(mean[name])) in {"Sandal", "Sneaker", "Trouser"}  # the narrow ones
    assert mean["Pullover"] > 2 * mean["Sandal"]
    assert mean["Coat"] > 2 * mean["Sneaker"]


def test_no_picture_is_in_both_splits_and_none_is_blank() -> None:
    train, test = ({image.tobytes() for image in pictures(split)} for split in FACTS)
    assert (len(train), len(test)) == (1000, 2000)
    assert not train & test
    assert bytes(28 * 28) not in train | test


def test_drawing_on_a_picture_leaves_the_next_one_clean() -> None:
    source = built_in("train")
    before = source.image(0).tobytes()
    source.image(0).paste(255, (0, 0, 28, 28))
    assert source.image(0).tobytes() == before != b"\xff" * 784


def test_a_graph_whose_input_alone_is_observed_is_counted() -> None:
    """Asked for no outputs, onnxruntime gives all of them."""
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[N, 1] input) => (float[N, 1] logits) { logits = Relu(input) }'
    )
    batches = [np.ones((2, 1), np.float32), np.full((1, 1), 3, np.float32)]
    counted = collect(graph, ["input"], batches)["input"]
    assert (int(counted.counts.sum()), counted.largest) == (3, 3.0)
