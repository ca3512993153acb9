"""Read a quantized graph: pairs off its activations, stored weights and biases into floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.facts import type_name
from exporter.graph.intake.plain import opset_of
from exporter.graph.intake.wiring import drop_unused
from exporter.lowering.qdq.constants import evaluate
from exporter.lowering.qdq.targets import Edge
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, int_attribute, node_label
from exporter.lowering.requantize.plain import pass_through, plain_graph
from exporter.lowering.requantize.trained import (
    REMOVED,
    Pair,
    TrainedNetwork,
    TrainedWeight,
    integer_limits,
    merged,
    note,
)
from runtimes.errors import BadInput

MOVES_WEIGHTS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")
"""Operators that may stand between a weight's DequantizeLinear and its reader."""
PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators whose weights, their second inputs, may stay quantized."""
ANY_LOW, ANY_HIGH = -(2**31), 2**31 - 1


def read_trained(model: onnx.ModelProto) -> TrainedNetwork:
    """Read a graph whose activations are quantized by Q/DQ pairs alone (see `operators.with_pairs`).

    Raises:
        BadInput: a pair's scale is not constant, or its two nodes do not fit; names the node.
    """
    plain = plain_graph(model)
    reader = _Reader(plain)
    for node in plain.graph.node:
        reader.add(node)
    return reader.network()


@dataclass(frozen=True)
class _Held:
    """A constant that is stored quantized: its values, and the scale and zero point of each of them."""

    values: NDArray[np.float32]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int32]
    type: str
    node: str


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.opset = model, opset_of(model)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.held: dict[str, _Held] = {}
        self.sources: dict[str, tuple[str, Pair]] = {}  # what DequantizeLinear makes: of which tensor, by which pair
        self.nodes: list[onnx.NodeProto] = []
        self.pairs: dict[Edge, Pair] = {}
        self.weights: dict[str, TrainedWeight] = {}
        self.notes: dict[str, list[str]] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Read a node; those before it have been read."""
        if node.op_type == DEQUANTIZE and node.input[0] in self.tensors:
            self.held[node.output[0]] = self._held(node)
        elif node.op_type == DEQUANTIZE:
            self._read_pair(node)
        elif node.op_type in MOVES_WEIGHTS and node.input[0] in self.held and self._move(node):
            note(self.notes, "operator on stored weights applied to the weights themselves", node.name)
        elif node.op_type != QUANTIZE:
            self._read_inputs(node)

    def network(self) -> TrainedNetwork:
        """What was read."""
        graph, outputs, added = self.model.graph, {}, set()
        for value in graph.output:
            if value.name in self.sources:
                source, outputs[value.name] = self.sources[value.name]
                added.add(f"{value.name}.identity")
                self.nodes.append(helper.make_node("Identity", [source], [value.name], name=f"{value.name}.identity"))
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        result.graph.initializer.extend(tensor for name, tensor in self.tensors.items() if name in read)
        for name in list(self.held):  # one after the other, since they may be large
            values = self.held.pop(name).values
            if name in read:
                result.graph.initializer.append(numpy_helper.from_array(values, name))
        drop_unused(result.graph)
        pass_through(result.graph, [node for node in result.graph.node if node.name in added])
        return TrainedNetwork(result, self.pairs, outputs, self.weights, self.notes)

    def _read_inputs(self, original: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for place, name in enumerate(node.input):
            if name in self.sources:
                node.input[place], self.pairs[Edge(node.name, place)] = self.sources[name]
            if name in self.held:
                self._read_held(node, place)
        self.nodes.append(node)

    def _read_held(self, node: onnx.NodeProto, place: int) -> None:
        held = self.held[node.input[place]]
        if held.type == "INT32":
            note(self.notes, "INT32 bias written as floats", node.name)
        if node.op_type not in PRODUCTS or place != 1:
            return
        axis = 0 if node.op_type == "Conv" or int_attribute(node, "transB", 0) else held.values.ndim - 1
        by_channel = [np.moveaxis(one, axis, 0).reshape(one.shape[axis], -1) for one in (held.scales, held.zero_points)]
        if (held.scales == 0).any():
            note(self.notes, "weight scale of 0 written as 1, since its weights are 0", node.name)
            by_channel[0] = np.where(by_channel[0] == 0, 1, by_channel[0])
        is_by_channel = all((one == one[:, :1]).all() for one in by_channel)
        scales, zero_points = (one[:, 0] for one in by_channel)
        self.weights[node.input[1]] = TrainedWeight(
            scales.astype(np.float32) if is_by_channel else None, zero_points.astype(np.int32), held.type, held.node
        )
        if node.op_type == "Conv" and self.weights[node.input[1]].given() is None:
            note(self.notes, "weight rounded to INT8 anew, with a scale for each output channel", node.name)

    def _held(self, node: onnx.NodeProto) -> _Held:
        stored = self.tensors[node.input[0]]
        values = numpy_helper.to_array(stored)
        scales = self._constant(node, 1).astype(np.float32)
        zeros = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros((), np.int32)
        shaped = [self._along(node, one, values.shape) for one in (scales, zeros.astype(np.int32))]
        floats = (values.astype(np.float32) - shaped[1].astype(np.float32)) * shaped[0].astype(np.float32)
        return _Held(floats, shaped[0], shaped[1], type_name(stored.data_type), node.name)

    def _along(self, node: onnx.NodeProto, numbers: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The numbers of a constant's DequantizeLinear, one for each of its values."""
        block = int_attribute(node, "block_size", 0)
        axis = int_attribute(node, "axis", 1)
        axis += len(shape) if axis < 0 else 0
        if block and numbers.ndim:
            numbers = np.repeat(numbers, block, axis)[tuple(slice(size) for size in shape)]
        elif numbers.size == 1:
            numbers = numbers.reshape(())
        elif numbers.ndim == 1 and axis < len(shape) and shape[axis] == numbers.size:
            numbers = numbers.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        else:
            raise BadInput(
                f"expected one scale, or one for each channel of {list(shape)} along axis {axis}, got {numbers.size} "
                f"at '{node.name}'; quantize the network again"
            )
        return np.broadcast_to(numbers, shape)

    def _move(self, node: onnx.NodeProto) -> bool:
        """Do to a stored constant what a node does to it; false if that is not known."""
        held, more = self.held[node.input[0]], list(node.input)[1:]
        if any(name not in self.tensors for name in more):
            return False
        given = {name: np.asarray(numpy_helper.to_array(self.tensors[name])) for name in more}
        moved = []
        for one in (held.values, held.scales, held.zero_points.astype(np.float32)):
            value = evaluate(node, node.output[0], {node.input[0]: np.asarray(one, np.float32), **given}, self.opset)
            if value is None or value.dtype != np.float32:
                return False
            moved.append(value)
        self.held[node.output[0]] = replace(
            held, values=moved[0], scales=moved[1], zero_points=moved[2].astype(np.int32)
        )
        return True

    def _read_pair(self, node: onnx.NodeProto) -> None:
        """Read a DequantizeLinear of what a QuantizeLinear makes; a Clip of integers may stand between."""
        maker, low, high = self.makers.get(node.input[0]), ANY_LOW, ANY_HIGH
        while maker is not None and maker.op_type == "Clip":
            bounds = list(self._bounds(maker))
            low, high = max(low, bounds[0]), min(high, bounds[1])
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != QUANTIZE:
            what = "the graph's input" if maker is None else f"{node_label(maker)} ({maker.op_type})"
            raise BadInput(
                f"expected a QuantizeLinear before '{node.name}', got {what}; quantize the float network with "
                "--int8 --data instead"
            )
        pair = self._pair(maker, low, high)
        if self._pair(node, low, high, maker).grid != pair.grid:
            raise BadInput(
                f"expected one scale and zero point for '{maker.name}' and '{node.name}', got two; quantize "
                "the network again"
            )
        source = maker.input[0]
        if source in self.sources:
            source, before = self.sources[source]
            one = merged(before, pair)
            gone = before if one is pair else pair
            is_same = before.grid == pair.grid
            what = "second Q/DQ pair of the same tensor removed" if is_same else f"{REMOVED} behind another one"
            note(self.notes, what, gone.node)
            pair = one
        self.sources[node.output[0]] = (source, pair)

    def _pair(self, node: onnx.NodeProto, low: int, high: int, quantize: onnx.NodeProto | None = None) -> Pair:
        """The pair of a node of it, cut to what a Clip leaves of the integers."""
        scale = self._constant(node, 1).astype(np.float32).ravel()
        has_zero_point = len(node.input) > 2 and bool(node.input[2])
        zeros = self._constant(node, 2).ravel() if has_zero_point else np.zeros(1, np.int32)
        quantize = quantize or node
        if len(quantize.input) > 2 and quantize.input[2]:
            kind = type_name(self.tensors[quantize.input[2]].data_type)
        else:
            kind = type_name(int_attribute(quantize, "output_dtype", 0) or TensorProto.UINT8)
            note(self.notes, "missing zero point written out as ONNX reads it: 0, in UINT8", quantize.name)
        zero = int(zeros[0])
        limits = integer_limits(kind)
        if limits is not None:
            low, high = max(low, limits[0]), min(high, limits[1])
        channels = len(scale) if (scale != scale[0]).any() or (zeros != zeros[0]).any() else 1
        return Pair(float(scale[0]), low - zero, high - zero, kind, zero, node.name, channels)

    def _bounds(self, clip: onnx.NodeProto) -> Iterator[int]:
        for place, default in ((1, ANY_LOW), (2, ANY_HIGH)):
            is_given = len(clip.input) > place and bool(clip.input[place])
            yield int(self._constant(clip, place).ravel()[0]) if is_given else default

    def _constant(self, node: onnx.NodeProto, place: int) -> NDArray[Any]:
        name = node.input[place]
        if name not in self.tensors:
            raise BadInput(
                f"expected scales and zero points that are fixed in the file, got '{name}', which '{node.name}' "
                "computes as it runs; quantize the network statically"
            )
        return np.asarray(numpy_helper.to_array(self.tensors[name]))
