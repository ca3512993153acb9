"""Count what a graph is made of: nodes, parameters, operators and multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto

from exporter.graph.facts import inline_functions, type_name
from exporter.graph.inference import InferredGraph, NodePlace, Shape, inferred_graphs
from runtimes.manifest import GraphFacts

# fmt: off
PARAMETER_TYPES = (
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4",
    "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1",
)
MULTIPLIES = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul",
)
"""Operators whose multiply-accumulates are counted."""
UNCOUNTED = (
    "FusedConv", "NhwcConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm", "QGemm", "Einsum", "Attention",
    "LSTM", "GRU", "RNN", "DeformConv",
)
"""Operators that multiply in ways that are not counted here, so that a graph with one of them has an unknown count."""
# fmt: on
FACTORS = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3)}
"""The inputs that are multiplied with each other, for operators where these are not the first two."""
PREPROCESSING = "pixels."
"""Prefix of the nodes that prepare pixels (`exporter.graph.pillow_resize`), which is not the network's work."""


def graph_facts(model: onnx.ModelProto) -> GraphFacts:
    """Nodes, parameters, multiply-accumulates for one image, operators, and each operator's input types.

    Calls of local functions count as the functions' nodes, and the graphs inside an If, a Loop or a Scan count as well.
    Parameters are counted in initializers and in Constant nodes. The multiply-accumulates are None where a Loop repeats
    work, an If chooses between unequal branches, or a size is free.
    """
    graphs = inferred_graphs(inline_functions(model))
    types: dict[str, Counter[str]] = {}
    for inferred in graphs:
        for node in inferred.graph.node:
            first = inferred.types.get(node.input[0], "?") if node.input else "none"
            types.setdefault(node.op_type, Counter())[first] += 1
    tensors = (tensor for inferred in graphs for tensor in _constant_tensors(inferred.graph))
    macs = _total_macs(graphs, 0)
    return GraphFacts(
        nodes=sum(len(inferred.graph.node) for inferred in graphs),
        parameters=sum(math.prod(tensor.dims) for tensor in tensors if type_name(tensor.data_type) in PARAMETER_TYPES),
        macs=None if macs is None or macs % graphs[0].images else macs // graphs[0].images,
        operators={operator: sum(types[operator].values()) for operator in sorted(types)},
        types={operator: dict(sorted(types[operator].items())) for operator in sorted(types)},
    )


def multiply_accumulates(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """A node's multiply-accumulates for the batch size of `shapes`; None if a size is unknown.

    Zero for all but convolutions and matrix products.
    """
    if node.op_type in UNCOUNTED:
        return None
    if node.op_type not in MULTIPLIES or node.name.startswith(PREPROCESSING):
        return 0
    first, second = FACTORS.get(node.op_type, (0, 1))
    source, weight, output = (shapes.get(name) for name in (node.input[first], node.input[second], node.output[0]))
    if not source or not weight or not output:
        return None
    if node.op_type == "ConvTranspose":
        return _product([*source, *weight[1:]])
    if "Conv" in node.op_type:
        return _product([*output, *weight[1:]])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return _product([*output, source[0 if transposed else -1]])


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates for one image of every node, by its name; 0 where they are not known."""
    inferred = inferred_graphs(model)[0]
    return {
        node.name: (multiply_accumulates(node, inferred.shapes) or 0) // inferred.images for node in model.graph.node
    }


def _product(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _total_macs(graphs: Sequence[InferredGraph], index: int) -> int | None:
    """Multiply-accumulates of one of the graphs and of those inside its nodes; None if they are unknown."""
    inferred, total = graphs[index], 0
    for number, node in enumerate(inferred.graph.node):
        inner = [
            _total_macs(graphs, other) for other, one in enumerate(graphs) if one.owner == NodePlace(index, number)
        ]
        # An If runs one of its branches; how often a Loop or a Scan runs its body is unknown.
        chosen: int | None = 0
        if inner:
            chosen = inner[0] if len(set(inner)) == 1 and (node.op_type == "If" or inner[0] == 0) else None
        own = multiply_accumulates(node, inferred.shapes)
        if own is None or chosen is None:
            return None
        total += own + chosen
    return total


def _constant_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """A graph's initializers, and the tensors in its Constant nodes."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")
