"""Which tensors are quantized, so that TensorRT fuses convolutions with what follows them.

The rules (NVIDIA, "Working with Quantized Types", Q/DQ placement recommendations; measured against NVIDIA ModelOpt's placement):

- every convolution's input, one pair per tensor, shared by all that take it quantized, and every convolution's weight;
- nothing between a convolution and its ReLU: TensorRT fuses the two, and requantizes once;
- of a residual addition, the shortcut alone: the other branch ends in a convolution, which takes the addition in, if its own
  output is not quantized (TensorRT#1992, Model-Optimizer#425);
- a max pool's input: it commutes with quantization, so the pool runs on INT8; what leaves it has the same range;
- global pooling and the classifier stay in float: little work, and much of the accuracy. So do a gate's convolutions (squeeze and excitation,
  ECA, split attention), whose input is one pooled pixel too.

Whatever else there is (attention, normalisation, gates, resizing, concatenation) stays in float, and `left_in_float` says which convolutions do.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx

from exporter.graph.blocks import residuals
from exporter.graph.facts import constant_names, reduces_space

Edge = tuple[str, int]
POOLS = ("GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True)
class Placement:
    """What to quantize in a graph.

    Attributes:
        edges: (node, place of its input) of every input that is fed quantized.
        tensors: the tensors on those edges, in the graph's order; each gets one pair.
        ranges: tensor -> the tensor whose range it takes (itself, but for what leaves a max pool).
        weights: the convolutions whose weights are quantized.
    """

    edges: frozenset[Edge]
    tensors: tuple[str, ...]
    ranges: dict[str, str]
    weights: tuple[str, ...]

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be known, in the graph's order."""
        return tuple(dict.fromkeys(self.ranges[name] for name in self.tensors))


def placement_for_tensorrt(model: onnx.ModelProto) -> Placement:
    """The placement for a float graph whose batch norms are folded; its nodes must have distinct names."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    floats = left_in_float(graph)
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.name not in floats]
    quantized = {node.name for node in convolutions}
    fed_to_convolution = {node.input[0] for node in convolutions}
    edges = {(node.name, 0) for node in convolutions}
    pools = [node for node in graph.node if node.op_type == "MaxPool" and node.output[0] in fed_to_convolution]
    edges |= {(node.name, 0) for node in pools}
    for residual in residuals(graph):
        main = producers.get(residual.addition.input[1 - residual.shortcut])
        if main is not None and main.name in quantized:
            edges.add((residual.addition.name, residual.shortcut))
    tensors = {node.input[place] for node in graph.node for place in range(len(node.input)) if (node.name, place) in edges}
    ordered = [name for name in (*(value.name for value in graph.input), *producers) if name in tensors]
    ranges = {name: name for name in ordered}
    for node in pools:
        if node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    return Placement(frozenset(edges), tuple(ordered), ranges, tuple(node.name for node in convolutions))


def left_in_float(graph: onnx.GraphProto) -> dict[str, str]:
    """The convolutions that the placement leaves in float, by name, and why; of a quantized graph, those it would."""
    return {graph.node[place].name: reason for place, reason in places_left_in_float(graph).items()}


def places_left_in_float(graph: onnx.GraphProto) -> dict[int, str]:
    """The same by their places in the graph: strangers' nodes may have no names, or one name twice."""
    known = constant_names(graph)
    pooled = _pooled(graph, known)
    reasons = {}
    for place, node in enumerate(graph.node):
        if node.op_type == "Conv" and node.input[0] in pooled:
            reasons[place] = "its input is one pooled pixel: little work, and much of the accuracy"
        elif node.op_type == "Conv" and node.input[1] not in known:
            reasons[place] = "its weight is computed, so it has no scales of its own"
    return reasons


def _pooled(graph: onnx.GraphProto, known: Set[str]) -> set[str]:
    """The tensors computed from globally pooled ones alone: one pixel for each channel."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    pooled: set[str] = set()
    for node in graph.node:
        computed = set(filter(None, node.input)) - known
        if node.op_type in POOLS or reduces_space(node, values) or (computed and computed <= pooled):
            pooled.update(node.output)
    return pooled
