"""Tell quantized files from others, and write operators on integers as float ones between Q/DQ pairs.

The forms are those of ONNX (QLinearConv, QLinearMatMul) and of ONNX Runtime's own domain, com.microsoft (QLinearAdd,
QGemm ...), which `onnxruntime.quantization` writes in its format QOperator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporter.graph.facts import constant_names, inline_functions
from exporter.lowering.qdq.constants import constant_tensor
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, int_attribute, node_label
from exporter.lowering.requantize.plain import unused_name
from runtimes.errors import BadInput

# fmt: off
DYNAMIC = frozenset({
    "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM", "ConvIntegerToFloat",
})
"""Operators that quantize by the range of each picture, measured as the network runs."""
MOVES = (
    "Identity", "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand",
    "Tile", "Gather", "DepthToSpace", "SpaceToDepth", "Concat",
)
"""Operators on integers that only move them, or take the largest: they do the same between DequantizeLinear and
QuantizeLinear."""
# fmt: on
UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
    "QLinearReduceMean": "ReduceMean",
}
BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model quantizes what it computes, by Q/DQ pairs or by operators on integers; graphs inside of nodes are
    not looked at. Weights alone that are stored quantized do not count."""
    model = inline_functions(model)
    constants = constant_names(model.graph)
    return any(
        (node.op_type == QUANTIZE and node.input[0] not in constants) or node.op_type in DYNAMIC or is_on_integers(node)
        for node in model.graph.node
    )


def with_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose operators on integers are float ones between Q/DQ pairs; values are the same but for what integer
    kernels round otherwise.

    Scales and zero points are passed on as they are, in their own types; INT32 biases get a DequantizeLinear. A file
    with scales for each channel and an opset before 13, which has no DequantizeLinear for these, can be read here, and
    not be run.

    Raises:
        BadInput: an operator quantizes by ranges that are measured as the network runs, or has no float form here;
            names the node.
    """
    model = inline_functions(model)
    for node in model.graph.node:
        if node.op_type in DYNAMIC:
            raise BadInput(
                f"expected scales that are fixed in the file, got {node.op_type} at '{node_label(node)}', which "
                "measures them for each picture; quantize the float network statically, or export it with --int8 --data"
            )
    rewriting = _Rewriting(model)
    for node in model.graph.node:
        rewriting.add(node)
    graph, result = model.graph, onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(rewriting.nodes)
    result.graph.initializer.extend(rewriting.tensors)
    used = {node.domain for node in rewriting.nodes}
    kept = [one for one in model.opset_import if one.domain in ("", "ai.onnx") or one.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    assert len(graph.output) == len(result.graph.output)
    return result


def is_on_integers(node: onnx.NodeProto) -> bool:
    """Whether a node computes on integers with scales of its own."""
    return bool(node.op_type.startswith("QLinear") or node.op_type == "QGemm")


@dataclass(frozen=True)
class _Grid:
    """The names of a scale and of a zero point; the latter is empty if there is none."""

    scale: str
    zero_point: str

    def inputs(self) -> list[str]:
        return [self.scale, self.zero_point] if self.zero_point else [self.scale]


@dataclass
class _Rewriting:
    """The nodes of a graph, rewritten one after the other."""

    model: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.grids: dict[str, _Grid] = {}  # of every activation that is held in integers
        self.values = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            stored = constant_tensor(node) if node.op_type == "Constant" else None
            if stored is not None:
                self.values[node.output[0]] = stored
        self.constants = constant_names(graph)
        self.taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
        self.taken |= {value.name for value in graph.input} | set(self.values)

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node, rewritten if it works on integers."""
        if node.op_type == QUANTIZE and node.input[0] not in self.constants:
            self.grids[node.output[0]] = _grid(node.input[1:])
        if node.op_type in (QUANTIZE, DEQUANTIZE, "Clip"):
            if node.op_type == "Clip" and node.input[0] in self.grids:
                self.grids[node.output[0]] = self.grids[node.input[0]]
            self.nodes.append(node)
        elif is_on_integers(node):
            self._rewrite(node)
        elif node.op_type == "Pad" and node.input[0] in self.grids:
            self._pad(node, self.grids[node.input[0]])
        elif node.op_type in MOVES and node.input and node.input[0] in self.grids:
            grids = [self.grids.get(name) for name in node.input]
            self._between(
                node, node.op_type, [(name, grid) for name, grid in zip(node.input, grids, strict=True)], grids[0]
            )
        else:
            self.nodes.append(node)

    def _rewrite(self, node: onnx.NodeProto) -> None:
        """Add the float form of an operator on integers."""
        given, kind = list(node.input), node.op_type
        if kind == "QLinearConv":
            self._matrix(node, "Conv", given[:8], given[8:9])
        elif kind == "QLinearMatMul":
            self._matrix(node, "MatMul", given, [])
        elif kind == "QGemm":
            self._matrix(node, "Gemm", [*given[:6], *given[7:9]], given[6:7])
        elif kind in BINARY:
            read = [(given[0], _grid(given[1:3])), (given[3], _grid(given[4:6]))]
            self._between(node, BINARY[kind], list(read), _grid(given[6:8]))
        elif kind == "QLinearConcat":
            parts = [(given[place], _grid(given[place + 1 : place + 3])) for place in range(2, len(given), 3)]
            self._between(node, "Concat", list(parts), _grid(given[:2]))
        elif kind in UNARY and not int_attribute(node, "channels_last", 0):
            self._between(node, UNARY[kind], [(given[0], _grid(given[1:3]))], _grid(given[3:5]))
        else:
            raise BadInput(
                f"expected operators on integers that have a float form, got {kind} at '{node_label(node)}'; quantize "
                "to Q/DQ format (onnxruntime.quantization: quant_format=QuantFormat.QDQ)"
            )

    def _matrix(self, node: onnx.NodeProto, operator: str, given: list[str], bias: list[str]) -> None:
        """Add a Conv, Gemm or MatMul; `given` are input, weight and output, each but the last before its grid."""
        source, weight = _grid(given[1:3]), _grid(given[4:6])
        is_row = operator == "Conv" or bool(int_attribute(node, "transB", 0))
        read: list[tuple[str, _Grid | None]] = [(given[0], source), (given[3], weight)]
        if bias and bias[0]:
            read.append((bias[0], self._bias_grid(node, source, weight)))
        self._between(node, operator, read, _grid(given[6:8]) if given[6:7] else None, axis=0 if is_row else 1)

    def _pad(self, node: onnx.NodeProto, grid: _Grid) -> None:
        """Add a Pad whose constant is the value that its integer stands for."""
        given = list(node.input)
        filled = [self._value(node, name) for name in given[2:3] if name] or [np.zeros((), np.int32)]
        zero = self._value(node, grid.zero_point) if grid.zero_point else np.zeros((), np.int32)
        steps = filled[0].astype(np.float32) - zero.astype(np.float32)
        name = unused_name(f"{node_label(node)}.constant", self.taken)
        value = steps.reshape(()) * self._value(node, grid.scale).astype(np.float32).reshape(())
        self.tensors.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        read: list[tuple[str, _Grid | None]] = [(given[0], grid), (given[1], None), (name, None)]
        self._between(node, "Pad", [*read, *((one, None) for one in given[3:])], grid)

    def _value(self, node: onnx.NodeProto, name: str) -> NDArray[Any]:
        if name not in self.values:
            raise BadInput(
                f"expected scales in initializers, got others at '{node_label(node)}'; simplify the file (onnxsim)"
            )
        return np.asarray(numpy_helper.to_array(self.values[name]))

    def _bias_grid(self, node: onnx.NodeProto, source: _Grid, weight: _Grid) -> _Grid:
        """The scales of an INT32 bias: those of the input times those of the weight."""
        first, second = self._value(node, source.scale), self._value(node, weight.scale)
        name = unused_name(f"{node_label(node)}.bias_scale", self.taken)
        self.tensors.append(numpy_helper.from_array(np.asarray(first.reshape(()) * second, np.float32), name))
        self.values[name] = self.tensors[-1]
        return _Grid(name, "")

    def _between(
        self,
        node: onnx.NodeProto,
        operator: str,
        read: list[tuple[str, _Grid | None]],
        made: _Grid | None,
        *,
        axis: int = 0,
    ) -> None:
        """Add a float operator, its inputs dequantized and its output quantized."""
        inputs = [self._dequantized(name, grid, axis) if grid else name for name, grid in read]
        name = node.output[0]
        output = unused_name(f"{name}.float", self.taken) if made else name
        new = helper.make_node(operator, inputs, [output], name=node.name, **_attributes(node))
        self.nodes.append(new)
        if made:
            self.nodes.append(helper.make_node(QUANTIZE, [output, *made.inputs()], [name], name=f"{output}.quantize"))
            self.grids[name] = made

    def _dequantized(self, name: str, grid: _Grid, axis: int) -> str:
        output = unused_name(f"{name}.dequantized", self.taken)
        scale = self.values.get(grid.scale)
        is_by_channel = name in self.constants and scale is not None and math.prod(scale.dims) > 1
        more: dict[str, Any] = {"axis": axis} if is_by_channel else {}
        self.nodes.append(
            helper.make_node(DEQUANTIZE, [name, *grid.inputs()], [output], name=f"{output}.dequantize", **more)
        )
        return output


def _grid(names: Sequence[str]) -> _Grid:
    scale, *rest = names
    return _Grid(str(scale), str(rest[0]) if rest else "")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes, without those that only operators on integers have."""
    return {
        one.name: helper.get_attribute_value(one)
        for one in node.attribute
        if one.name not in ("channels_last", "opset")
    }
