"""Small quantized graphs as strangers write them: one convolution each, of unusual input, weight or surroundings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH, SIDE = 32, 16, 8
STEP = np.float32(0.05)
INT8, UINT8, FLOAT, HALF = np.int8(0), np.uint8(0), TensorProto.FLOAT, TensorProto.FLOAT16
PER_CHANNEL = np.linspace(0.001, 0.002, ROWS).astype(np.float32)


class Graph:
    """A graph in the making; `x` is its input, of 16 channels and 8 by 8 pixels."""

    def __init__(self, opset: int = 21) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.names = 0

    def named(self) -> str:
        self.names += 1
        return f"t{self.names}"

    def constant(self, value: Any, kind: int | None = None) -> str:
        """An initializer."""
        name = self.named()
        array = np.asarray(value)
        made = (
            numpy_helper.from_array(array, name)
            if kind is None
            else helper.make_tensor(name, kind, array.shape, array.ravel().tolist())
        )
        self.tensors.append(made)
        return name

    def held(self, value: Any) -> str:
        """A Constant node."""
        return self.node("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def node(self, operator: str, *inputs: Any, domain: str = "", **attributes: Any) -> str:
        """A node without a name; numbers among its inputs become initializers."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        name = self.named()
        self.nodes.append(helper.make_node(operator, names, [name], domain=domain, **attributes))
        return name

    def pair(self, tensor: str, scale: Any = STEP, zero: Any = INT8, **attributes: Any) -> str:
        """QuantizeLinear and DequantizeLinear; `zero` is None for none."""
        scale = scale if isinstance(scale, str) else self.constant(scale)
        zeros = [] if zero is None else [zero if isinstance(zero, str) else self.constant(zero)]
        return self.node(
            "DequantizeLinear",
            self.node("QuantizeLinear", tensor, scale, *zeros, **attributes),
            scale,
            *zeros,
            **attributes,
        )

    def weight(self, *shape: int, axis: int | None = 0, kind: Any = np.int8) -> str:
        """A stored INT8 weight behind its DequantizeLinear; `axis` is None for one scale."""
        shape = shape or (ROWS, WIDTH, 3, 3)
        values = (np.arange(np.prod(shape)) % 7 + 1).reshape(shape).astype(kind)
        if axis is None:
            return self.node("DequantizeLinear", values, np.float32(0.01), kind(0))
        scales = np.linspace(0.001, 0.002, shape[axis]).astype(np.float32)
        return self.node("DequantizeLinear", values, scales, np.zeros(shape[axis], kind), axis=axis)

    def floats(self, *shape: int) -> str:
        shape = shape or (ROWS, WIDTH, 3, 3)
        return self.constant((np.arange(np.prod(shape)) % 5 / 10).reshape(shape).astype(np.float32))

    def given(self, name: str, kind: int, *shape: int) -> str:
        """A further input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def model(
        self, output: str, *, takes: int = FLOAT, gives: int = FLOAT, shape: Sequence[int] = (1, WIDTH, SIDE, SIDE)
    ) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("x", takes, shape), *self.inputs]
        graph = helper.make_graph(
            self.nodes, "graph", inputs, [helper.make_tensor_value_info(output, gives, None)], self.tensors
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


Part = Callable[[Graph], str]


def convolved(
    source: Part | None = None,
    weight: Part | None = None,
    *,
    behind: Callable[[Graph, str], str] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """`Conv(source, weight)`, by default of a good pair and a good weight.

    `more` may have `operator`, `bias` and `opset`; the rest is for `Graph.model`.
    """
    operator, bias, opset = more.pop("operator", "Conv"), more.pop("bias", None), more.pop("opset", 21)
    graph = Graph(opset)
    inputs = [source(graph) if source else graph.pair("x"), weight(graph) if weight else graph.weight()]
    output = graph.node(operator, *inputs, *([bias(graph)] if bias else []))
    return graph.model(behind(graph, output) if behind else output, **more)


def over(operator: str, *more: Any, **attributes: Any) -> Part:
    """A node between a good pair and the convolution."""
    return lambda graph: graph.node(operator, graph.pair("x"), *more, **attributes)


def within(operator: str, *more: Any, **attributes: Any) -> Part:
    """A node between the two of a pair."""
    return lambda graph: graph.node(
        "DequantizeLinear",
        graph.node(operator, graph.node("QuantizeLinear", "x", STEP, INT8), *more, **attributes),
        STEP,
    )


def zero_by(made: Part) -> Part:
    return lambda graph: graph.pair("x", zero=made(graph))


def scale_by(made: Part) -> Part:
    return lambda graph: graph.pair("x", scale=made(graph))


def behind_weight(
    operator: str, *more: Any, axis: int | None = 0, shape: Sequence[int] = (), **attributes: Any
) -> Part:
    """A node between the weight's DequantizeLinear and the convolution."""
    return lambda graph: graph.node(operator, graph.weight(*shape, axis=axis), *more, **attributes)


def half_pair(graph: Graph) -> str:
    return graph.pair("x", np.float16(0.05))


def half_weight(graph: Graph) -> str:
    values = np.ones((ROWS, WIDTH, 3, 3), np.int8)
    return graph.node("DequantizeLinear", values, np.full(ROWS, 0.01, np.float16), np.zeros(ROWS, np.int8), axis=0)


def branching(where: str) -> onnx.ModelProto:
    """An If: one branch's convolution reads what was quantized `inside` or `outside` of it, the other's floats."""
    graph = Graph()
    outside = (graph.pair("x"), graph.weight()) if where == "outside" else None
    parts = []
    for name, start in (("quantized", 100), ("float", 200)):
        inner = Graph()
        inner.names = start
        if name == "float":
            source, kernel = "x", inner.floats()
        else:
            source, kernel = outside or (inner.pair("x"), inner.weight())
        output = inner.node("Conv", source, kernel)
        result = helper.make_tensor_value_info(output, FLOAT, (1, ROWS, SIDE - 2, SIDE - 2))
        parts.append(helper.make_graph(inner.nodes, name, [], [result], inner.tensors))
    graph.given("which", TensorProto.BOOL)
    return graph.model(graph.node("If", "which", then_branch=parts[0], else_branch=parts[1]))


def in_function() -> onnx.ModelProto:
    """The pair inside of a local function."""
    graph = Graph()
    body = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ]
    function = helper.make_function("local", "Fake", ["a", "s", "z"], ["b"], body, [helper.make_opsetid("", 21)])
    model = graph.model(graph.node("Conv", graph.node("Fake", "x", STEP, INT8, domain="local"), graph.weight()))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def blocked(axis: int, *shape: int) -> Part:
    """A stored weight with a scale for each two values along an axis."""
    sizes = [size // 2 if place == axis else size for place, size in enumerate(shape)]
    values, scales = np.ones(shape, np.int8), np.full(sizes, 0.01, np.float32)
    return lambda graph: graph.node("DequantizeLinear", values, scales, axis=axis, block_size=2)


def stored(kind: int) -> Part:
    """A stored weight of a type that numpy does not have."""
    return lambda graph: graph.node(
        "DequantizeLinear", graph.constant(np.ones((ROWS, WIDTH, 3, 3)), kind), np.full(ROWS, 0.01, np.float32), axis=0
    )


def typed_pair(kind: int) -> Part:
    return lambda graph: graph.pair("x", zero=graph.constant(0, kind))


def joined(first: Any, second: Any) -> Part:
    """Concat of two pairs, of these scales; None for a float."""

    def make(graph: Graph) -> str:
        half = [graph.node("Slice", "x", np.array([at]), np.array([at + 8]), np.array([1])) for at in (0, 8)]
        return graph.node(
            "Concat",
            *(
                part if step is None else graph.pair(part, step)
                for part, step in zip(half, (first, second), strict=True)
            ),
            axis=1,
        )

    return make


def dynamic(graph: Graph) -> str:
    """Scale and zero point measured as it runs."""
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["measured", "scale", "zero"]))
    return graph.node("DequantizeLinear", "measured", "scale", "zero")


def residual(*turns: str, addition: str = "Add", activation: str = "Relu") -> onnx.ModelProto:
    """A stem, a residual block and a head, all as it should be but for `turns`.

    `main`, `float shortcut`: which side of the addition is quantized. `norm`, `bias`: a batch norm, an addition of a
    Constant node behind every convolution. `inside`: a pair ahead of the block's first activation. `gate`: squeeze and
    excitation. `third`: a third tensor is added.
    """
    graph = Graph(13 if "gate" in turns else 17)

    def layer(source: str, *shape: int) -> str:
        output = graph.node("Conv", source, graph.weight(*shape), pads=[1] * 4)
        if "norm" in turns:
            output = graph.node("BatchNormalization", output, *[np.ones(WIDTH, np.float32)] * 4)
        return (
            graph.node("Add", output, graph.held(np.ones((1, WIDTH, 1, 1), np.float32))) if "bias" in turns else output
        )

    def activated(source: str) -> str:
        return graph.node(activation, source, *([np.float32(0), np.float32(6)] if activation == "Clip" else []))

    whole = activated(layer(graph.pair("x"), WIDTH, WIDTH, 3, 3))
    parted = graph.pair(whole)
    main = layer(parted, WIDTH, WIDTH, 3, 3)
    main = activated(graph.pair(main) if "inside" in turns else main)
    main = layer(graph.pair(main), WIDTH, WIDTH, 3, 3)
    if "gate" in turns:
        pooled = graph.node("ReduceMean", main, axes=[2, 3], keepdims=1)
        main = graph.node(
            "Mul", main, graph.node("Sigmoid", graph.node("Conv", pooled, graph.floats(WIDTH, WIDTH, 1, 1)))
        )
    main = graph.pair(main) if "main" in turns else main
    sides = [main, whole if "float shortcut" in turns else parted, *([whole] if "third" in turns else [])]
    pooled = graph.node("GlobalAveragePool", graph.node("Relu", graph.node(addition, *sides)))
    return graph.model(graph.node("Gemm", graph.node("Flatten", pooled), graph.floats(WIDTH, 10)))
