"""The convolutions that every target leaves in float: those of gates, and those whose weights are computed."""

from __future__ import annotations

from collections.abc import Set

import onnx

from exporter.graph.facts import constant_names, reduces_space

POOLS = ("GlobalAveragePool", "GlobalMaxPool")
WINDOWED = ("AveragePool", "MaxPool")
"""Pools of a graph that is written for DLA; that they give one pixel stands among the graph's shapes."""


def places_left_in_float(graph: onnx.GraphProto) -> dict[int, str]:
    """The convolutions that stay in float: place among the graph's nodes -> reason."""
    known = constant_names(graph)
    pooled = _pooled_tensors(graph, known)
    reasons = {}
    for place, node in enumerate(graph.node):
        if node.op_type == "Conv" and node.input[0] in pooled:
            reasons[place] = "its input is one pooled pixel: little work, and much of the accuracy"
        elif node.op_type == "Conv" and node.input[1] not in known:
            reasons[place] = "its weight is computed, so it has no scales of its own"
    return reasons


def global_pools(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that reduce their input to one pixel, whatever its size."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    pixels = {value.name for value in graph.value_info if _is_one_pixel(value)}
    return [
        node
        for node in graph.node
        if node.op_type in POOLS
        or reduces_space(node, values)
        or (node.op_type in WINDOWED and pixels.issuperset(node.output))
    ]


def _is_one_pixel(value: onnx.ValueInfoProto) -> bool:
    sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return len(sizes) == 4 and sizes[2:] == [1, 1]


def _pooled_tensors(graph: onnx.GraphProto, known: Set[str]) -> set[str]:
    """The tensors computed from globally pooled ones alone: they have one pixel per channel."""
    pooled = {name for node in global_pools(graph) for name in node.output}
    for node in graph.node:
        computed = set(filter(None, node.input)) - known
        if computed and computed <= pooled:
            pooled.update(node.output)
    return pooled
