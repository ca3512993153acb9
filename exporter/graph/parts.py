"""Cut a float graph at the borders of its blocks, into graphs that can be run one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from exporter.graph.blocks import Block, blocks
from exporter.graph.facts import type_name
from exporter.graph.inference import InferredGraph, inferred_graphs

FLOAT = type_name(TensorProto.FLOAT)


@dataclass(frozen=True)
class Part:
    """A block as a graph of its own.

    Attributes:
        name: the block's, with a number behind it where an earlier block has the same.
        reads: the float tensors that it takes from the model's input and from earlier blocks.
        makes: the float tensors that later blocks, or the model's outputs, take from it.
        model: computes `makes` from `reads`, at any batch size. What else it needs (constants, and sizes as integers)
            it computes itself.
    """

    name: str
    block: Block
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    model: onnx.ModelProto


def named_blocks(graph: onnx.GraphProto) -> dict[str, Block]:
    """The blocks of a graph by name, those without nodes left out; of a name that comes again, it is `layer1.0 (2)`."""
    found = [block for block in blocks(graph) if block.nodes]
    counts = Counter[str]()
    named = {}
    for block in found:
        counts[block.name] += 1
        named[block.name if counts[block.name] == 1 else f"{block.name} ({counts[block.name]})"] = block
    return named


def parts(model: onnx.ModelProto) -> tuple[Part, ...]:
    """The blocks of a float graph, stem and head included, each as a graph of its own; blocks without nodes left out.

    Every part reads only what earlier parts make.
    """
    inferred = inferred_graphs(model)[0]
    graph = model.graph
    floats = {name for name, kind in inferred.types.items() if kind == FLOAT} - inferred.constants
    named = named_blocks(graph)
    found = list(named.values())
    owners = {
        name: place for place, block in enumerate(found) for node in block.nodes for name in graph.node[node].output
    }
    read_in: dict[str, set[int]] = {value.name: {len(found)} for value in graph.output}
    for place, block in enumerate(found):
        for node in block.nodes:
            for name in graph.node[node].input:
                read_in.setdefault(name, set()).add(place)
    inputs = [value.name for value in graph.input]
    crossing = {name for name in owners if name in floats and read_in.get(name, set()) - {owners[name]}}
    names = list(named)
    result = []
    for place, block in enumerate(found):
        makes = tuple(name for name, owner in owners.items() if owner == place and name in crossing)
        nodes, reads = _needed(graph, makes, crossing.difference(makes).union(inputs))
        values = [_at_any_batch(inferred, name) for name in reads]
        result.append(Part(names[place], block, reads, makes, _part_model(model, nodes, values, makes)))
    return tuple(result)


def _needed(
    graph: onnx.GraphProto, wanted: Collection[str], given: Collection[str]
) -> tuple[list[onnx.NodeProto], tuple[str, ...]]:
    """The nodes that compute `wanted` from `given`, and which of `given` they read, both in the graph's order."""
    needed, nodes = set(wanted), []
    read: set[str] = set()
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        nodes.append(node)
        read.update(name for name in node.input if name in given)
        needed.update(name for name in node.input if name not in given)
    order = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    return nodes[::-1], tuple(name for name in order if name in read)


def _at_any_batch(inferred: InferredGraph, name: str) -> onnx.ValueInfoProto:
    sizes = inferred.shapes[name]
    shape = ["batch", *(f"size{place}" if size is None else size for place, size in enumerate(sizes[1:], start=1))]
    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(inferred.types[name]), shape)


def _part_model(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Collection[str],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
