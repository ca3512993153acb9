"""What `inspect --dla` says of operators that DLA does not have, beyond pools and heads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from qdq_graphs import HALF, ROWS, Graph
from rule_graphs import alone, down, half_convolution

from exporter.lowering.lint.file import lint_file
from exporter.lowering.lint.versions import choose_versions


def told(model: onnx.ModelProto) -> list[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    found = lint_file(inferred, choose_versions("11.4"), dla=True).findings
    return [one.finding.message for one in found if one.finding.rule == "RE802"]


def resizing(sizes: tuple[object, ...]) -> onnx.ModelProto:
    """What finds a picture's pixels by its sizes, as a resize in a graph does, and multiplies by what it computed."""

    def part(graph: Graph) -> str:
        shape = graph.node("Shape", "x")
        size = graph.node("Gather", shape, np.array(3), axis=0)
        places = graph.node("Range", np.array(0), size, np.array(1))
        near = graph.node("Less", places, np.array(4))
        weights = graph.node("Where", near, np.float16(0.5), np.float16(0))
        square = graph.node("Unsqueeze", weights, np.array([1]))
        return graph.node("MatMul", down(graph), square)

    return alone(part, shape=sizes, gives=HALF)


def test_a_graph_that_resizes_names_each_operator_once() -> None:
    rows = (ROWS, 3, "height", "width")
    assert [one.split(" on the GPU")[0] for one in told(resizing(rows))] == [
        "a Shape of free sizes runs",
        "Gather runs",
        "Range runs",
        "Less runs",
        "Where runs",
        "a MatMul whose weight is computed runs",
    ]


def test_what_fixed_sizes_make_known_is_left_out() -> None:
    assert told(resizing((ROWS, 3, 8, 8))) == []


@pytest.mark.parametrize("name", ["Exp", "Sqrt", "Neg"])
def test_the_others_of_an_operator_are_counted(name: str) -> None:
    model = alone(lambda g: g.node(name, g.node(name, half_convolution(g, down(g)))), gives=HALF)
    assert told(model) == [f"{name} runs on the GPU, here and at 1 more; see the rule's page"]


def test_a_transpose_of_pixels_is_told_and_one_of_halves_is_not() -> None:
    def part(graph: Graph) -> str:
        pixels = graph.node("Cast", "x", to=TensorProto.UINT8)
        turned = graph.node("Transpose", pixels, perm=[0, 1, 3, 2])
        return graph.node("Transpose", graph.node("Cast", turned, to=HALF))

    assert told(alone(part, gives=HALF)) == ["a Transpose of UINT8 runs on the GPU; see the rule's page"]
