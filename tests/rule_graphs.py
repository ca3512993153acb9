"""A small graph for each of the linter's rules, which that rule finds something in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import qdq_graphs as made
from onnx import TensorProto
from qdq_graphs import FLOAT, HALF, INT8, PER_CHANNEL, ROWS, STEP, UINT8, WIDTH, Graph, Part, convolved, over

from exporter.lowering.lint.file import FileReport, lint_file, lint_file_for_processors
from exporter.lowering.lint.versions import choose_versions

ONES = np.ones((ROWS, WIDTH, 3, 3), np.int8)
FLOATS = np.ones((ROWS, WIDTH, 1, 1), np.float32)
NORM = [np.ones(WIDTH, np.float32)] * 4


def alone(part: Part, *, opset: int = 20, **more: Any) -> onnx.ModelProto:
    """What a part makes of `x`, as the whole graph."""
    graph = Graph(opset)
    return graph.model(part(graph), **more)


def dq(graph: Graph, data: Any, scale: Any = STEP, *more: Any, **attributes: Any) -> str:
    return graph.node("DequantizeLinear", data, scale, *more, **attributes)


def stored_elsewhere(model: onnx.ModelProto, *types: int) -> onnx.ModelProto:
    """With the constants of these types in another file, which was not read."""
    for tensor in model.graph.initializer:
        if tensor.data_type in types and not tensor.dims:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
    return model


def half_convolution(graph: Graph, source: str) -> str:
    return graph.node("Conv", source, FLOATS.astype(np.float16))


def down(graph: Graph) -> str:
    return graph.node("Cast", "x", to=HALF)


def requantized(graph: Graph, tensor: str, zero: Any = INT8) -> str:
    return graph.node("QuantizeLinear", tensor, STEP, zero)


def gemm(graph: Graph, *bias: Any, largest: int = 1) -> str:
    weight = dq(graph, np.full((WIDTH, 10), largest, np.int8), np.float32(0.01), INT8)
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", "x"))
    return graph.node("Gemm", graph.pair(pooled), weight, *bias)


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "RE101": partial(alone, lambda g: g.node("Det", "x")),
    "RE102": partial(alone, lambda g: g.node("FusedConv", "x", FLOATS, domain="com.microsoft")),
    "RE103": partial(alone, lambda g: g.node("Cast", np.ones(1, np.int16), to=FLOAT)),
    "RE104": partial(
        convolved, None, lambda g: dq(g, g.node("Transpose", ONES.transpose(3, 2, 1, 0), perm=[3, 2, 1, 0]))
    ),
    "RE105": partial(convolved, bias=lambda g: dq(g, g.held(np.ones(ROWS, np.int32)), g.held(STEP))),
    "RE106": partial(convolved, None, lambda g: g.weight(kind=np.uint8)),
    "RE107": partial(
        convolved, lambda g: dq(g, g.node("QuantizeLinear", "x", STEP, output_dtype=TensorProto.INT16))
    ),
    "RE108": partial(
        convolved, lambda g: dq(g, g.node("QuantizeLinear", "x", STEP, output_dtype=TensorProto.UINT8))
    ),
    "RE109": partial(convolved, lambda g: g.pair("x", zero=UINT8)),
    "RE110": partial(alone, lambda g: g.node("Mul", "x", dq(g, np.int8(1)))),
    "RE111": partial(convolved, made.scale_by(lambda g: g.given("scale", FLOAT))),
    "RE112": partial(convolved, made.scale_by(lambda g: g.node("Sigmoid", STEP))),
    "RE113": partial(convolved, lambda g: g.pair("x", np.float32(0))),
    "RE114": partial(convolved, made.scale_by(lambda g: g.node("Sub", STEP, STEP))),
    "RE115": partial(convolved, lambda g: g.pair("x", zero=np.int8(3))),
    "RE116": partial(convolved, made.zero_by(lambda g: "")),
    "RE117": partial(convolved, made.zero_by(lambda g: g.node("Sub", np.int8(3), np.int8(3)))),
    "RE118": partial(convolved, made.zero_by(lambda g: g.node("Cast", np.int32(0), to=TensorProto.UINT8))),
    "RE119": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL, INT8, axis=0)),
    "RE120": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL[:16], axis=0)),
    "RE121": partial(convolved, None, made.blocked(1, ROWS, WIDTH, 3, 3)),
    "RE122": partial(
        convolved,
        None,
        lambda g: g.node("Concat", g.weight(16, WIDTH, 3, 3), g.weight(16, WIDTH, 3, 3), axis=0),
    ),
    "RE123": partial(convolved, None, made.stored(TensorProto.INT4)),
    "RE124": partial(
        convolved, made.typed_pair(TensorProto.FLOAT8E4M3FN), made.stored(TensorProto.FLOAT8E4M3FN)
    ),
    "RE125": partial(convolved, made.scale_by(lambda g: g.node("Cosh", STEP))),
    "RE126": lambda: stored_elsewhere(convolved(), TensorProto.INT8),
    "RE127": lambda: with_function(alone(lambda g: g.node("Net", "x", g.floats(), domain="local"))),
    "RE130": partial(
        alone, lambda g: g.node("Dropout", "x", np.float32(0.5), np.array(True)), opset=17
    ),
    "RE131": lambda: with_second_output(alone(lambda g: g.node("MaxPool", "x", kernel_shape=[2, 2]))),
    "RE132": partial(alone, lambda g: g.node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])),
    "RE133": partial(
        alone,
        lambda g: g.node("Resize", "x", "", np.array([1, 1, 0.5, 0.5], np.float32), mode="linear", antialias=1),
    ),
    "RE134": partial(alone, lambda g: g.node("Cast", "x", to=FLOAT), takes=TensorProto.INT16),
    "RE135": partial(
        alone,
        lambda g: g.node("Cast", g.node("Transpose", "x", perm=[0, 2, 3, 1]), to=FLOAT),
        takes=TensorProto.UINT8,
    ),
    "RE136": partial(alone, lambda g: g.node("Relu", "x"), takes=TensorProto.INT32, gives=TensorProto.INT32),
    "RE137": partial(
        alone,
        lambda g: g.node("BatchNormalization", "x", *[np.ones((WIDTH, 8, 8), np.float32)] * 4, spatial=0),
        opset=7,
    ),
    "RE138": partial(alone, lambda g: g.node("NonZero", "x"), gives=TensorProto.INT64),
    "RE139": partial(alone, lambda g: g.node("ReduceSum", "x", g.given("axes", TensorProto.INT64, 1))),
    "RE201": partial(convolved, lambda g: "x"),
    "RE202": partial(convolved, over("Relu")),
    "RE203": partial(
        convolved, lambda g: g.pair("x", np.full(WIDTH, STEP), np.zeros(WIDTH, np.int8), axis=1)
    ),
    "RE204": partial(convolved, lambda g: g.pair("x", np.array([0.05], np.float32), np.array([0], np.int8))),
    "RE205": partial(convolved, None, lambda g: g.weight(axis=1)),
    "RE206": partial(convolved, made.joined(STEP, np.float32(0.07))),
    "RE207": partial(convolved, made.joined(STEP, None)),
    "RE208": partial(convolved, None, made.blocked(2, ROWS, WIDTH, 4, 3)),
    "RE209": partial(convolved, made.scale_by(lambda g: g.pair(g.constant(STEP), np.float32(0.01)))),
    "RE210": partial(convolved, lambda g: g.node("Cast", g.pair("x", np.float16(0.05)), to=FLOAT)),
    "RE211": partial(convolved, over("Mul", np.ones((1, WIDTH, 1, 1), np.float32))),
    "RE212": partial(convolved, None, lambda g: g.weight(WIDTH, ROWS, 2, 2, axis=1), operator="ConvTranspose"),
    "RE213": partial(made.residual, "inside"),
    "RE214": partial(made.residual, "main"),
    "RE215": partial(made.residual, "main", "float shortcut"),
    "RE216": partial(made.residual, "float shortcut"),
    "RE217": partial(
        convolved, behind=lambda g, y: dq(g, requantized(g, g.node("MaxPool", y, kernel_shape=[2, 2])))
    ),
    "RE218": partial(alone, lambda g: g.node("GlobalAveragePool", g.pair("x"))),
    "RE219": partial(made.residual, "third", addition="Sum"),
    "RE220": lambda: stored_elsewhere(convolved(made.joined(STEP, STEP)), FLOAT),
    "RE221": partial(made.residual, "gate"),
    "RE222": partial(made.residual, "gate", "float shortcut"),
    "RE301": partial(convolved, bias=lambda g: g.constant(np.ones(ROWS, np.float16))),
    "RE302": partial(
        alone, lambda g: g.node("Conv", g.node("Cast", half_convolution(g, down(g)), to=FLOAT), FLOATS[:, :1], group=32)
    ),
    "RE303": partial(
        alone,
        lambda g: half_convolution(
            g,
            g.node(
                "Cast", g.node("Exp", g.node("Cast", g.node("Relu", down(g)), to=FLOAT)), to=HALF
            ),
        ),
        gives=HALF,
    ),
    "RE304": partial(
        alone, lambda g: dq(g, requantized(g, down(g)), STEP, INT8)
    ),
    "RE305": partial(
        alone, lambda g: g.node("Relu", "x"), takes=TensorProto.DOUBLE, gives=TensorProto.DOUBLE
    ),
    "RE401": partial(alone, lambda g: g.node("Relu", "x"), opset=22),
    "RE402": partial(alone, lambda g: g.node("Relu", "x"), opset=8),
    "RE403": partial(alone, lambda g: g.node("Swish", "x"), opset=24),
    "RE404": partial(alone, lambda g: g.node("Add", "x", "x"), opset=6),
    "RE501": partial(alone, lambda g: g.node("Conv", "x", FLOATS * np.float32("nan"))),
    "RE502": partial(alone, lambda g: g.node("Mul", down(g), g.node("Cast", np.float32(1e6), to=HALF)), gives=HALF),
    "RE503": partial(alone, lambda g: g.node("Add", down(g), np.float16(1e-6)), gives=HALF),
    "RE601": partial(
        convolved,
        lambda g: g.pair("x", np.float16(1e-4)),
        made.half_weight,
        bias=lambda g: g.constant(np.full(ROWS, 100, np.float16)),
        behind=lambda g, y: g.node("QuantizeLinear", y, np.float16(0.1), INT8),
        takes=HALF,
        gives=TensorProto.INT8,
    ),
    "RE602": partial(convolved, made.half_pair, made.half_weight, takes=HALF, gives=HALF, opset=17),
    "RE701": partial(convolved, lambda g: "x"),
    "RE702": partial(convolved, made.half_pair, made.half_weight, takes=HALF, gives=HALF),
    "RE703": partial(convolved, lambda g: g.pair("x", zero=np.int16(0))),
    "RE704": convolved,
    "RE705": partial(convolved, behind=lambda g, y: dq(g, requantized(g, y, UINT8), STEP, UINT8)),
    "RE706": partial(
        convolved,
        behind=lambda g, y: dq(g, requantized(g, g.node("Relu", y), INT8), STEP, INT8),
    ),
    "RE707": partial(alone, lambda g: gemm(g, np.ones(10, np.float32))),
    "RE708": partial(
        convolved,
        None,
        lambda g: dq(g, ONES * 127, np.float32(0.01), INT8),
        behind=lambda g, y: dq(g, requantized(g, y), STEP, INT8),
    ),
    "RE709": partial(alone, lambda g: gemm(g, largest=127)),
    "RE710": partial(made.residual, "gate"),
    "RE801": partial(alone, lambda g: g.node("Relu", "x"), shape=("batch", WIDTH, 8, 8)),
    "RE802": partial(alone, lambda g: g.node("GlobalAveragePool", "x")),
    "RE803": partial(alone, lambda g: g.node("Conv", "x", FLOATS)),
    "RE804": convolved,
}  # fmt: skip
"""Rule -> a graph that it finds something in."""


def with_second_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """The places of a max pool's values, too."""
    model.graph.node[0].output.append("places")
    model.graph.output.append(onnx.helper.make_tensor_value_info("places", TensorProto.INT64, None))
    return model


def with_function(model: onnx.ModelProto, opset: int = 17) -> onnx.ModelProto:
    """With the local function `Net`, a convolution, of an opset of its own."""
    helper = onnx.helper
    nodes = [helper.make_node("Conv", ["a", "w"], ["b"])]
    model.functions.append(
        helper.make_function("local", "Net", ["a", "w"], ["b"], nodes, [helper.make_opsetid("", opset)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def linted(model: onnx.ModelProto, rule: str = "", target: str | None = None) -> FileReport:
    """What is said of a graph where a rule belongs: for processors, for DLA, else for `target`."""
    if rule.startswith("RE7"):
        return lint_file_for_processors(model)
    versions = choose_versions(target)
    is_dla = rule.startswith("RE8")
    return lint_file(model, [one for one in versions if one.dla] if is_dla else versions, dla=is_dla)
