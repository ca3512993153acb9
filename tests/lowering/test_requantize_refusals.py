"""What is refused of files that are quantized already: the words, and the kinds of the errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto
from qdq_graphs import WIDTH, Graph, dynamic, typed_pair
from quantized_files import single

from exporter.lowering.requantize.mend import is_quantized, mended, with_pairs
from runtimes.errors import BadInput, PlanError, ResnetExportError


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (
            lambda graph: graph.pair(graph.node("Relu", "x"), zero=np.uint8(0)),
            PlanError,
            "its 255 steps above zero are 127 in INT8, so half of them would be lost",
        ),
        (lambda graph: graph.pair(graph.node("Relu", "x"), zero=None), PlanError, "got UINT8 with 0 at"),
        (lambda graph: graph.pair("x", zero=np.int8(3)), PlanError, "got INT8 with 3 at"),
        (typed_pair(TensorProto.INT16), PlanError, "expected pairs of INT8 or UINT8, got INT16 at"),
        (
            lambda graph: graph.pair(
                "x", np.linspace(0.01, 0.02, WIDTH).astype(np.float32), np.zeros(WIDTH, np.int8), axis=1
            ),
            PlanError,
            "expected activations quantized per tensor, got 16 scales at",
        ),
        (lambda graph: graph.pair("x", np.float32(0)), PlanError, "expected scales above 0, got 0 at"),
        (
            lambda graph: graph.pair("x", graph.node("ReduceMax", graph.node("Abs", "x"), keepdims=0)),
            BadInput,
            "expected scales and zero points that are fixed in the file",
        ),
        (dynamic, BadInput, "expected scales that are fixed in the file, got DynamicQuantizeLinear at"),
    ],
)
def test_what_tensorrt_cannot_hold_is_refused(
    source: Callable[[Graph], str], error: type[ResnetExportError], words: str
) -> None:
    model = single(source, opset=21)
    assert is_quantized(model)
    with pytest.raises(error) as refusal:
        mended(model, "tensorrt")
    assert words in str(refusal.value)
    assert ";" in str(refusal.value)


def test_other_operators_on_integers_are_refused_by_name() -> None:
    graph = Graph(17)
    where = graph.node("QLinearWhere", "x", "x", domain="com.microsoft")
    with pytest.raises(BadInput, match="got QLinearWhere at 'QLinearWhere of 't1''; quantize to Q/DQ format"):
        with_pairs(graph.model(where))


def test_a_file_without_a_quantized_convolution_is_refused() -> None:
    with pytest.raises(PlanError, match="expected a convolution whose input and weight are quantized, got none"):
        mended(single(source=lambda graph: "x"))
