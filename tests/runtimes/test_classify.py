"""Classify pictures with a bundle's parts: probabilities, names, order."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data import FASHION_MNIST_CLASSES, built_in
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.classify import classify, softmax
from runtimes.cores import usable_cores
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange

PREPROCESS = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))


def pictures(count: int) -> list[Image.Image]:
    return [built_in("test").image(place) for place in range(count)]


def test_softmax_gives_the_probabilities_worked_out_by_hand() -> None:
    logits = np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]]))
    np.testing.assert_allclose(softmax(logits), [[0.125, 0.25, 0.625], [0.375, 0.375, 0.25]], rtol=1e-12)


def test_of_a_single_logit_the_probability_is_its_sigmoid() -> None:
    """The softmax of one number is 1, whatever it is."""
    logits = np.array([[0.0], [math.log(3.0)], [-1000.0], [1000.0]])
    np.testing.assert_allclose(softmax(logits), [[0.5], [0.75], [0.0], [1.0]], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_softmax_adds_up_to_one_and_does_not_overflow(dtype: str) -> None:
    logits = np.array([[60000.0, 59999.0, -60000.0], [-60000.0, -60000.0, -60000.0]], dtype)
    found = softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1], 1 / 3)


def test_adding_a_constant_changes_no_probability() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 10))
    np.testing.assert_allclose(softmax(logits + 100), softmax(logits), rtol=1e-10)


def test_pictures_are_classified_as_their_logits_say_most_likely_first(tiny_model: Path) -> None:
    images = pictures(5)
    with OnnxRuntime.open(tiny_model / "model.onnx", batch=BatchRange(1, 2, 2)) as runtime:  # in three parts
        logits = runtime.run({"input": PREPROCESS.batch(images)})["logits"].astype(float)
        found = classify(runtime, PREPROCESS, images, labels=FASHION_MNIST_CLASSES, top=3)
    assert [len(predictions) for predictions in found] == [3] * 5
    for predictions, row in zip(found, logits, strict=True):
        order = sorted(range(10), key=lambda index: -row[index])[:3]
        assert [one.index for one in predictions] == order
        assert [one.label for one in predictions] == [FASHION_MNIST_CLASSES[index] for index in order]
        expected = [math.exp(row[index]) / sum(map(math.exp, row)) for index in order]
        assert [one.probability for one in predictions] == pytest.approx(expected)


def test_without_names_a_class_is_called_by_its_index(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        (predictions,) = classify(runtime, PREPROCESS, pictures(1))
    assert [one.label for one in predictions] == [str(one.index) for one in predictions]
    assert len(predictions) == 5


def test_all_classes_are_listed_once_where_more_are_asked_for(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        (predictions,) = classify(runtime, PREPROCESS, pictures(1), top=99)
    assert sorted(one.index for one in predictions) == list(range(10))
    assert sum(one.probability for one in predictions) == pytest.approx(1)
    assert [one.probability for one in predictions] == sorted((one.probability for one in predictions), reverse=True)


def test_pictures_of_any_size_and_colour_go_together(tiny_model: Path) -> None:
    images = [Image.new("RGB", (64, 30), (200, 10, 10)), Image.new("L", (28, 28), 128), Image.new("CMYK", (5, 99))]
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        together = classify(runtime, PREPROCESS, images)
        alone = [classify(runtime, PREPROCESS, [image])[0] for image in images]
    for several, one in zip(together, alone, strict=True):
        assert [prediction.index for prediction in several] == [prediction.index for prediction in one]
        assert [prediction.probability for prediction in several] == pytest.approx(
            [prediction.probability for prediction in one], rel=1e-4
        )


def test_pictures_are_read_a_few_ahead_and_none_is_kept(tiny_model: Path) -> None:
    alive: list[weakref.ref[Image.Image]] = []

    def read() -> Iterator[Image.Image]:
        for image in pictures(40):
            copy = image.copy()
            alive.append(weakref.ref(copy))
            yield copy
            del copy
            assert sum(one() is not None for one in alive) <= 2 * 2 + usable_cores() + 1  # with the one just read

    with OnnxRuntime.open(tiny_model / "model.onnx", batch=BatchRange(1, 2, 2)) as runtime:
        streamed = classify(runtime, PREPROCESS, read())
        assert streamed == classify(runtime, PREPROCESS, pictures(40))
    assert len(alive) == 40
