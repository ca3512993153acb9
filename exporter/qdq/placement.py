"""Which tensors are quantized, so that TensorRT fuses convolutions with what follows them.

The rules (NVIDIA, "Working with Quantized Types", Q/DQ placement recommendations; measured against NVIDIA ModelOpt's placement):

- every convolution's input, one pair per tensor, shared by all that take it quantized, and every convolution's weight;
- nothing between a convolution and its ReLU: TensorRT fuses the two, and requantizes once;
- of a residual addition, the shortcut alone: the other branch ends in a convolution, which takes the addition in, if its own
  output is not quantized (TensorRT#1992, Model-Optimizer#425);
- a max pool's input: it commutes with quantization, so the pool runs on INT8; what leaves it has the same range;
- global pooling and the classifier stay in float: little work, and much of the accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from exporter.qdq.blocks import residual_additions, shortcut_of

Edge = tuple[str, int]


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
    constants = {tensor.name for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in constants]
    fed_to_convolution = {node.input[0] for node in convolutions}
    edges = {(node.name, 0) for node in convolutions}
    pools = [node for node in graph.node if node.op_type == "MaxPool" and node.output[0] in fed_to_convolution]
    edges |= {(node.name, 0) for node in pools}
    for node in residual_additions(graph):
        shortcut = shortcut_of(graph, node)
        main = producers.get(node.input[1 - shortcut])
        if main is not None and main.op_type == "Conv":
            edges.add((node.name, shortcut))
    tensors = {node.input[place] for node in graph.node for place in range(len(node.input)) if (node.name, place) in edges}
    ordered = [name for name in (*(value.name for value in graph.input), *producers) if name in tensors]
    ranges = {name: name for name in ordered}
    for node in pools:
        if node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    return Placement(frozenset(edges), tuple(ordered), ranges, tuple(node.name for node in convolutions))
