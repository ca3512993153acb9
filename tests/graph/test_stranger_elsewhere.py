"""Files that other tools made with `make strangers` are what their records say, and answer as their frameworks did."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stranger_elsewhere import ELSEWHERE, elsewhere, float_source
from stranger_readings import pictures, scores

pytestmark = pytest.mark.slow

FROM_FLOAT = [name for name in ELSEWHERE if name.startswith(("modelopt", "nncf", "neural"))]
FROM_FRAMEWORK = [name for name in ELSEWHERE if name not in FROM_FLOAT]
ROUNDED = {"tfmot_trained": 0.1, "pt2e_static": 0.1, "pt2e_trained": 0.1}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_file_made_elsewhere_is_valid_and_as_recorded(name: str) -> None:
    made = elsewhere(name)

    onnx.checker.check_model(str(made.path))
    model = onnx.load(made.path)
    (image,), (answer,) = model.graph.input, model.graph.output
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert shape == [0, *made.reading.size, 3] if made.reading.layout == "nhwc" else [0, 3, *made.reading.size]
    assert answer.name == made.reading.output
    assert {one.version for one in model.opset_import if one.domain == ""} == {made.reading.opset}


@pytest.mark.parametrize("name", FROM_FRAMEWORK)
def test_a_file_answers_as_its_framework_did(name: str) -> None:
    made = elsewhere(name)
    assert made.images is not None
    assert made.answers is not None

    got = scores(made.path, made.reading.file_input(made.images))

    np.testing.assert_allclose(got, made.answers, atol=ROUNDED.get(name, 1e-4 * np.abs(made.answers).max()))
    assert np.ptp(made.answers, 0).max() > 0.01


@pytest.mark.parametrize("name", FROM_FLOAT)
def test_a_quantized_file_is_near_its_float_file(name: str) -> None:
    made = elsewhere(name)
    inputs = made.reading.file_input(pictures(8, made.reading.size, seed=11))

    got, wanted = scores(made.path, inputs), scores(float_source(), inputs)

    assert 1e-4 < np.abs(got - wanted).max() < 0.2 * np.abs(wanted).max()


def test_keras_resnet50v2_normalises_by_itself() -> None:
    kinds = Counter(node.op_type for node in onnx.load(elsewhere("keras_resnet50v2").path).graph.node)

    assert (kinds["Conv"], kinds["Mul"], kinds["Pad"], kinds["BatchNormalization"]) == (53, 17, 1, 0)


def test_tensorflows_trained_weights_have_no_pair() -> None:
    graph = onnx.load(elsewhere("tfmot_trained").path).graph

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert graph.node[0].op_type == "QuantizeLinear"
    assert all(node.input[1] in weights for node in graph.node if node.op_type == "Conv")
    assert all(weights[node.input[2]].dtype == np.uint8 for node in graph.node if node.op_type == "QuantizeLinear")
