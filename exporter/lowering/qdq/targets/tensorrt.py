"""Choose the tensors to quantize so that TensorRT fuses each convolution with what follows it.

The rules are NVIDIA's ("Working with Quantized Types", Q/DQ placement recommendations), and were compared with the
placement of NVIDIA ModelOpt:

- quantize the input and the weight of every convolution; each tensor has one pair, shared by all that read it
  quantized;
- quantize nothing between a convolution and its ReLU: TensorRT fuses the two, and requantizes once;
- quantize only the shortcut of a residual addition: the other branch ends in a convolution, which TensorRT fuses with
  the addition if the convolution's own output is not quantized (TensorRT#1992, Model-Optimizer#425);
- quantize a max pool's input: the pool commutes with quantization, so it runs in INT8, and its output has the same
  range;
- leave global pooling and the classifier in float, since they are little work and much of the accuracy; so are a gate's
  convolutions (squeeze and excitation, ECA, split attention), whose input is one pooled pixel too.

Everything else (attention, normalisation, gates, resizing, concatenation) stays in float too.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from exporter.graph.blocks import residuals
from exporter.lowering.qdq.targets import Edge, Placement
from exporter.lowering.qdq.targets._float import places_left_in_float

ON_INTEGERS = False


def place_pairs(model: onnx.ModelProto, float_nodes: Collection[str] = ()) -> Placement:
    """Choose what to quantize in a float graph with folded batch norms and distinct node names.

    Args:
        float_nodes: names of the nodes that read nothing quantized. A max pool among them still does where a quantized
            convolution reads its output: the pool of rounded values is the rounded value of the pool.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    floats = places_left_in_float(graph)
    convolutions = [
        node
        for place, node in enumerate(graph.node)
        if node.op_type == "Conv" and place not in floats and node.name not in float_nodes
    ]
    quantized = {node.name for node in convolutions}
    fed_to_convolution = {node.input[0] for node in convolutions}
    edges = {Edge(node.name, 0) for node in convolutions}
    pools = [node for node in graph.node if node.op_type == "MaxPool" and node.output[0] in fed_to_convolution]
    edges |= {Edge(node.name, 0) for node in pools}
    for residual in residuals(graph):
        main = producers.get(residual.addition.input[1 - residual.shortcut])
        if main is not None and main.name in quantized and residual.addition.name not in float_nodes:
            edges.add(Edge(residual.addition.name, residual.shortcut))
    tensors = {
        node.input[place] for node in graph.node for place in range(len(node.input)) if (node.name, place) in edges
    }
    ordered = [name for name in (*(value.name for value in graph.input), *producers) if name in tensors]
    ranges = {name: name for name in ordered}
    for node in pools:
        if node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    return Placement(frozenset(edges), tuple(ordered), ranges, tuple(node.name for node in convolutions))


__all__ = ["ON_INTEGERS", "place_pairs", "places_left_in_float"]
