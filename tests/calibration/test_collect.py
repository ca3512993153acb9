"""The pass over the calibration images: the same histograms however many batches are worked on at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration import collect as passes
from calibration.histogram import Histogram
from runtimes.errors import CalibrationError

TENSORS = ("input", "sum", "positive")
IMAGES = np.random.default_rng(3).standard_normal((11, 2, 5, 7), np.float32)


@pytest.fixture(name="model", scope="module")
def model_fixture() -> onnx.ModelProto:
    """input -> sum = input + bias -> positive = relu(sum)."""
    bias = np.array([0.5, -3.0], np.float32).reshape(1, 2, 1, 1)
    shape: list[str | int | None] = ["batch", 2, 5, 7]
    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "bias"], ["sum"]), helper.make_node("Relu", ["sum"], ["positive"])],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("positive", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def facts(histogram: Histogram) -> tuple[int, float, bytes]:
    return histogram.exponent, histogram.largest, histogram.counts.tobytes()


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_cores_and_cuts_change_no_count(model: onnx.ModelProto, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "usable_cores", lambda: cores)
    bias = numpy_helper.to_array(model.graph.initializer[0])
    expected = dict(zip(TENSORS, (IMAGES, IMAGES + bias, np.maximum(IMAGES + bias, 0)), strict=True))
    for cut in (1, 4, 11):
        found = passes.collect(model, TENSORS, np.split(IMAGES, range(cut, len(IMAGES), cut)))
        for name, values in expected.items():
            whole = Histogram()
            whole.update(values, name)
            assert facts(found[name]) == facts(whole), (name, cut)


def test_the_first_batch_that_is_not_finite_names_its_first_tensor(model: onnx.ModelProto) -> None:
    wrong = IMAGES.copy()
    wrong[4] = np.inf
    for tensors in (TENSORS, TENSORS[1:]):
        with pytest.raises(CalibrationError, match=f"'{tensors[0]}' holds NaN or infinite values"):
            passes.collect(model, tensors, [wrong])


def test_an_error_of_the_images_is_raised_as_it_is(model: onnx.ModelProto) -> None:
    def batches() -> Iterator[NDArray[np.float32]]:
        yield IMAGES
        raise CalibrationError("the pictures cannot be read")

    with pytest.raises(CalibrationError, match="^the pictures cannot be read$"):
        passes.collect(model, TENSORS, batches())
