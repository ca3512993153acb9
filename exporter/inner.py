"""Values inside a network: of an ONNX graph, and of the FP32 program that it came from, matched where a block ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch.fx import Graph, GraphModule, Interpreter, Node

from exporter.hybrid import apart
from exporter.qdq.blocks import blocks, residual_additions
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import PlanError
from runtimes.parity import LARGEST_SQNR_DB, sqnr_db

OPERATORS = {
    "aten.add": "Add",
    "aten.relu": "Relu",
    "aten.conv1d": "Conv",
    "aten.conv2d": "Conv",
    "aten.conv_transpose2d": "ConvTranspose",
    "aten.max_pool2d": "MaxPool",
}
"""What torch's operators are called in ONNX, so far as blocks are found by them; `aten.add_` is `aten.add` in place."""
REMEDY = "its blocks cannot be followed, leave --blocks out"
ALIKE = ("Add", "Relu", "MaxPool")
"""Operators that are the same on both sides: others are folded (batch norms) or taken apart (activations)."""


def exposed(model: onnx.ModelProto, names: Sequence[str], inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inner tensors of a graph by name, as ONNX Runtime computes them on the CPU; the graph is changed by no more than these outputs."""
    with OnnxRuntime.from_bytes(with_outputs(model, names).SerializeToString()) as runtime:
        found = runtime.run({runtime.inputs[0].name: inputs})
    return {name: found[name] for name in names}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a graph that gives these tensors too."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return result


def ends_of(graph: onnx.GraphProto) -> dict[str, str]:
    """The tensors at the ends of a float graph's blocks, in order, each with its block's name."""
    return {tensor: block.name for block in blocks(graph) for tensor in block.ends}


def rounded_names(simulation: onnx.GraphProto, tensors: Sequence[str]) -> list[str]:
    """Where a simulation holds these tensors of the float graph, rounded and in FP32; an output is so as it is."""
    produced, given = {name for node in simulation.node for name in node.output}, {value.name for value in simulation.output}
    return [f"{name}.wide" if f"{name}.wide" in produced and name not in given else name for name in tensors]


def noisiest(original: onnx.ModelProto, simulation: onnx.ModelProto, inputs: NDArray[Any]) -> tuple[str, float]:
    """The block, the stem and the head among them, whose own error is largest where each is fed what is exact, and its signal to noise in dB."""
    ends = ends_of(original.graph)
    exact = exposed(original, list(ends), inputs)
    found = exposed(apart(original, simulation, list(ends)), list(ends), inputs)
    ratios = [sqnr_db(exact[end], found[end]) if np.isfinite(found[end]).all() else -LARGEST_SQNR_DB for end in ends]
    place = int(np.argmin(ratios))
    return list(ends.values())[place], ratios[place]


def matched(module: GraphModule, graph: onnx.GraphProto) -> dict[str, str]:
    """The tensors at the ends of a graph's blocks, in order, each with the node of the program whose value it is.

    Both are parted into blocks by the same rules. Their additions correspond where each is computed from the one before it, so that there is
    but one order, and there are equally many.

    Raises:
        PlanError: they cannot be matched without guessing.
    """
    program = _outline(module.graph)
    counts = [len(residual_additions(one)) for one in (program, graph)]
    if counts[0] != counts[1]:
        raise PlanError(f"expected the program's residual additions in its ONNX graph too, got {counts[0]} and {counts[1]}; {REMEDY}")
    if not (_is_chain(program) and _is_chain(graph)):
        raise PlanError(f"expected residual additions that follow from one another, got some side by side; {REMEDY}")
    nodes, tensors = ends_of(program), ends_of(graph)
    constants = {tensor.name for tensor in graph.initializer}

    def kind_of(node: onnx.NodeProto) -> str:
        return "Bias" if node.op_type == "Add" and constants.intersection(node.input) else str(node.op_type)  # the shift of a batch norm

    kinds = [[kind_of(node) for name in ends for node in one.node if name in node.output] for one, ends in ((program, nodes), (graph, tensors))]
    alike = [[kind if kind in ALIKE else "" for kind in each] for each in kinds]
    if alike[0] != alike[1]:
        raise PlanError(f"expected blocks that end alike in the program and its ONNX graph, got {kinds[0]} and {kinds[1]}; {REMEDY}")
    return dict(zip(tensors, nodes, strict=True))


def program_values(module: GraphModule, nodes: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What nodes of a program compute, in true FP32 on the CPU."""
    interpreter = _Keeping(module, nodes)
    with torch.inference_mode():
        interpreter.run(torch.from_numpy(inputs.copy()))
    return interpreter.kept


class _Keeping(Interpreter):
    """Runs a program and keeps what some of its nodes compute, before an operator in place can change it."""

    def __init__(self, module: GraphModule, nodes: Collection[str]) -> None:
        super().__init__(module)
        self.nodes = nodes
        self.kept: dict[str, NDArray[np.float32]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.nodes:
            self.kept[n.name] = result.numpy().copy()
        return result


def _outline(graph: Graph) -> onnx.GraphProto:
    """A program as an ONNX graph of what depends on its input: names and operators alone, enough to find its blocks by."""
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    computed, nodes = set(inputs), []
    for node in graph.nodes:
        sources = [one.name for one in node.all_input_nodes if one.name in computed]
        if node.op == "output":
            outputs = sources
        elif sources:
            computed.add(node.name)
            # An addition of one computed tensor is a bias, not where two branches meet.
            kind = OPERATORS.get(str(node.target).split(".default")[0].split(".Tensor")[0].rstrip("_"), str(node.target))
            nodes.append(helper.make_node("Bias" if kind == "Add" and len(sources) == 1 else kind, sources, [node.name], name=node.name))
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
