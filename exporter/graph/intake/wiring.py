"""Look along the edges of a graph, and change it in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporter.graph.facts import keep_initializers, subgraphs
from exporter.graph.naming import distinct


class Wiring:
    """A graph's edges at one moment; look at them again after a change.

    Attributes:
        makers: tensor -> the node that makes it.
        users: tensor -> the nodes that read it, once for each time.
        constants: tensor -> its initializer.
        outputs: the names of the graph's outputs.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}

    def only_user(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor; None where there are others, or the graph returns it."""
        users = self.users.get(tensor, [])
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    def value(self, tensor: str) -> NDArray[Any] | None:
        """The value of a constant; None for a tensor that is none."""
        found = self.constants.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def other_input(self, node: onnx.NodeProto, tensor: str) -> str:
        """The other input of a node of two; empty where both are this tensor, or there are not two."""
        others = [name for name in node.input if name != tensor]
        return others[0] if len(node.input) == 2 and len(others) == 1 else ""


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name; texts as str."""
    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give a node an attribute, in place of one of that name."""
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def rename_tensor(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Read and make a tensor under another name, wherever a node does; the graph's own inputs and outputs stay."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def bypass(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Let what reads a node's output read its first input; an output of the graph keeps its name.

    The node itself stays, without an output, until it is removed. False where the graph returns both tensors, or
    returns what is no node's.
    """
    before, behind = node.input[0], node.output[0]
    outputs = {value.name for value in graph.output}
    if behind in outputs and (before in outputs or not any(before in one.output for one in graph.node)):
        return False
    node.output[0] = ""
    if behind in outputs:
        rename_tensor(graph, before, behind)
    else:
        rename_tensor(graph, behind, before)
    return True


def remove_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Remove nodes, by identity."""
    gone = {id(node) for node in nodes}
    replace_nodes(graph, [node for node in graph.node if id(node) not in gone])


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these the graph's nodes, in this order."""
    kept = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        kept.append(copy)
    del graph.node[:]
    graph.node.extend(kept)


def add_constant(graph: onnx.GraphProto, values: NDArray[Any], wish: str) -> str:
    """Add an initializer; returns its name, which is `wish` or that and a number."""
    used = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    name = distinct(wish, used)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes that nothing depends on, and the initializers that nothing reads."""
    needed, left = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(name for name in node.output if name):
            needed.update(name for name in node.input if name)
            needed.update(name for _, inner in subgraphs(node) for one in inner.node for name in one.input)
            left.append(node)
    if len(left) < len(graph.node):
        replace_nodes(graph, left[::-1])
    keep_initializers(graph, needed)
