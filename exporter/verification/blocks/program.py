"""Read values inside the FP32 program, at the nodes where the blocks of its ONNX graph end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch.fx import Graph, GraphModule, Interpreter, Node

from exporter.graph.blocks import residual_additions
from exporter.graph.probe import block_ends
from runtimes.errors import PlanError

OPERATORS = {
    "aten.add": "Add",
    "aten.relu": "Relu",
    "aten.conv1d": "Conv",
    "aten.conv2d": "Conv",
    "aten.conv_transpose2d": "ConvTranspose",
    "aten.max_pool2d": "MaxPool",
}
"""ONNX names of the torch operators that blocks are found by; `aten.add_` is `aten.add` in place."""
REMEDY = "its blocks cannot be followed, leave --blocks out"
ALIKE = ("Add", "Relu", "MaxPool")
"""Operators that are the same on both sides; others are folded (batch norms) or split up (activations)."""


def match_blocks(program: onnx.GraphProto, graph: onnx.GraphProto, *, ends_alike: bool = True) -> dict[str, str]:
    """For each tensor at the end of a graph's block, in order, find the node of the program that has the same value.

    Program and graph are divided into blocks by the same rules. Their residual additions correspond where both have
    equally many and each is computed from the one before it, so that there is only one order.

    Args:
        program: its outline, or the graph of a file: a tensor for each node.
        ends_alike: refuse blocks that end with other operators. Those of a quantized file may: its pairs do what a ReLU
            does.

    Returns:
        names of the program's tensors, by those of the graph's.

    Raises:
        PlanError: they cannot be matched without guessing.
    """
    counts = [len(residual_additions(one)) for one in (program, graph)]
    if counts[0] != counts[1]:
        raise PlanError(
            f"expected the program's residual additions in its ONNX graph too, got {counts[0]} and {counts[1]}; "
            f"{REMEDY}"
        )
    if not (_is_chain(program) and _is_chain(graph)):
        raise PlanError(f"expected residual additions that follow from one another, got some side by side; {REMEDY}")
    nodes, tensors = block_ends(program), block_ends(graph)
    constants = {tensor.name for tensor in graph.initializer}

    def kind_of(node: onnx.NodeProto) -> str:
        is_bias = node.op_type == "Add" and constants.intersection(node.input)  # the shift of a batch norm
        return "Bias" if is_bias else str(node.op_type)

    kinds = [
        [kind_of(node) for name in ends for node in one.node if name in node.output]
        for one, ends in ((program, nodes), (graph, tensors))
    ]
    alike = [[kind if kind in ALIKE else "" for kind in each] for each in kinds]
    if ends_alike and alike[0] != alike[1]:
        raise PlanError(
            f"expected blocks that end alike in the program and its ONNX graph, got {kinds[0]} and {kinds[1]}; {REMEDY}"
        )
    return dict(zip(tensors, nodes, strict=True))


def program_values(
    module: GraphModule, nodes: Collection[str], inputs: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Run a program on the CPU, without TF32, and return the values of these nodes, float32, by name.

    Args:
        inputs: float32 (images, channels, height, width).
    """
    interpreter = _Recorder(module, nodes)
    with torch.inference_mode():
        interpreter.run(torch.from_numpy(inputs.copy()))
    return interpreter.kept


class _Recorder(Interpreter):
    """Runs a program and copies what some of its nodes compute, before an operator in place can change it."""

    def __init__(self, module: GraphModule, nodes: Collection[str]) -> None:
        super().__init__(module)
        self.nodes = nodes
        self.kept: dict[str, NDArray[np.float32]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.nodes:
            self.kept[n.name] = result.numpy().copy()
        return result


def outline_of_program(graph: Graph) -> onnx.GraphProto:
    """A program as an ONNX graph of names and operators, enough to find its blocks; only what depends on its input."""
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    computed, nodes = set(inputs), []
    for node in graph.nodes:
        sources = [one.name for one in node.all_input_nodes if one.name in computed]
        if node.op == "output":
            outputs = sources
        elif sources:
            computed.add(node.name)
            target = str(node.target)
            kind = OPERATORS.get(target.split(".default")[0].split(".Tensor")[0].rstrip("_"), target)
            # An addition of one computed tensor is a bias, not where two branches meet.
            kind = "Bias" if kind == "Add" and len(sources) == 1 else kind
            nodes.append(helper.make_node(kind, sources, [node.name], name=node.name))
    given, result = ([onnx.ValueInfoProto(name=name) for name in names] for names in (inputs, outputs))
    return helper.make_graph(nodes, "program", given, result)


def _is_chain(graph: onnx.GraphProto) -> bool:
    """Is every residual addition computed from the one before it?"""
    sums = {node.output[0]: place for place, node in enumerate(residual_additions(graph))}
    latest: dict[str, int] = {}  # which of the additions each tensor was last computed from
    for node in graph.node:
        before = max((latest.get(name, -1) for name in node.input), default=-1)
        place = sums.get(node.output[0]) if node.output else None
        if place is not None and place != before + 1:
            return False
        latest.update(dict.fromkeys(node.output, before if place is None else place))
    return True
