"""Move and take off the pairs of a quantized network, each change noted: what holds for every target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.lowering.qdq.insert import MOST_NARROW
from exporter.lowering.qdq.targets import Edge
from exporter.lowering.qdq.targets.cpu import PLAIN_GEMM
from exporter.lowering.requantize.floats import gemm_form
from exporter.lowering.requantize.trained import REMOVED, Pair, TrainedNetwork, merged, note, readers

MOVES = ("MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity")
"""Operators behind which a pair rounds as it does ahead of them."""
AT_OUTPUT = f"{REMOVED} at an output of the network"


@dataclass
class Desk:
    """A network on which pairs are moved; `pairs`, `outputs` and `notes` of it change."""

    network: TrainedNetwork

    def __post_init__(self) -> None:
        self.graph = self.network.model.graph
        self.pairs, self.notes = self.network.pairs, self.network.notes
        self.nodes = {node.name: node for node in self.graph.node}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.outputs = {value.name for value in self.graph.output}
        self.readers = readers(self.graph)
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}

    def edges(self, tensor: str) -> list[Edge]:
        """The inputs that a tensor is fed to."""
        return self.readers.get(tensor, [])

    def tensor(self, edge: Edge) -> str:
        """What an input reads."""
        return str(self.nodes[edge.node].input[edge.place])

    def quantized(self) -> Iterator[onnx.NodeProto]:
        """The convolutions and classifiers whose input and weight are quantized."""
        for node in self.graph.node:
            is_plain = node.op_type == "Conv" or (node.op_type == "Gemm" and gemm_form(node) == PLAIN_GEMM)
            if is_plain and node.input[1] in self.network.weights and Edge(node.name, 0) in self.pairs:
                yield node

    def is_wide(self, weight: str) -> bool:
        """Whether a stored weight has more than 7 bits."""
        given = self.network.weights[weight].given()
        values = numpy_helper.to_array(self.tensors[weight])
        most = np.abs(values).reshape(len(values), -1).max(1)
        return given is None or bool((np.rint(most / given.scales) > MOST_NARROW).any())

    def insert_behind(self, tensor: str, node: onnx.NodeProto) -> None:
        """Add a node that reads a tensor, behind the one that makes it."""
        place = next((place for place, one in enumerate(self.graph.node) if tensor in one.output), -1)
        self.graph.node.insert(place + 1, node)

    def take_off(self, edge: Edge, why: str) -> None:
        """Remove the pair of an input, if it has one; `why` says where it stood, or what for."""
        pair = self.pairs.pop(edge, None)
        if pair is not None:
            note(self.notes, f"{REMOVED} {why}", edge.node)

    def put(self, edge: Edge, pair: Pair) -> None:
        """Give an input a pair behind which it may have one already."""
        before = self.pairs.get(edge)
        self.pairs[edge] = pair if before is None else merged(pair, before)
        if before is not None and before.grid != pair.grid:
            gone = before if self.pairs[edge] is pair else pair
            note(self.notes, f"{REMOVED} as one of two in a row", gone.node)


def move_pairs(network: TrainedNetwork) -> Desk:
    """Move pairs to where every target wants them: behind activations, on both sides of a max pool."""
    desk = Desk(network)
    for node in desk.graph.node:
        if node.op_type in ("Relu", "Clip"):
            _behind_activation(desk, node)
    for node in reversed(desk.graph.node):
        if node.op_type == "MaxPool":
            _ahead_of_pool(desk, node)
    wanted = {*_wanted_through(desk)}
    for node in desk.graph.node:
        pair = desk.pairs.get(Edge(node.name, 0))
        if node.op_type in MOVES and pair is not None:
            for edge in desk.edges(node.output[0]):
                if edge not in desk.pairs and edge in wanted:
                    desk.pairs[edge] = pair
    for name in list(network.outputs):
        note(desk.notes, AT_OUTPUT, name)
        del network.outputs[name]
    return desk


def _wanted_through(desk: Desk) -> Iterator[Edge]:
    """The inputs that are to have a pair of their own where one comes through a node that only moves values."""
    for node in desk.graph.node:
        if node.op_type in MOVES or node.op_type in ("Add", "Sum"):
            yield from (Edge(node.name, place) for place in range(len(node.input)))
        elif node.op_type in ("Conv", "Gemm") and node.input[1] in desk.network.weights:
            yield Edge(node.name, 0)


def _behind_activation(desk: Desk, node: onnx.NodeProto) -> None:
    """Move the pair before an activation behind it. With ReLU that computes the same: zero is one of its steps."""
    edge = Edge(node.name, 0)
    pair, maker = desk.pairs.get(edge), desk.makers.get(node.input[0])
    if pair is None or maker is None:
        return
    if node.op_type != "Relu" and not _starts_at_zero(desk, node):
        return
    del desk.pairs[edge]
    same = "which computes the same" if node.op_type == "Relu" else "which rounds the largest values otherwise"
    name = "ReLU" if node.op_type == "Relu" else node.op_type
    note(desk.notes, f"Q/DQ pair moved behind the {name} that follows, {same}", maker.name)
    if node.output[0] in desk.outputs:
        note(desk.notes, AT_OUTPUT, node.name)
    for behind in desk.edges(node.output[0]):
        desk.put(behind, pair)


def _starts_at_zero(desk: Desk, node: onnx.NodeProto) -> bool:
    """Whether a node is a Clip from 0 on."""
    low = desk.tensors.get(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
    return low is not None and not np.any(numpy_helper.to_array(low))


def _ahead_of_pool(desk: Desk, node: onnx.NodeProto) -> None:
    """Put the pair behind a max pool ahead of it, too: the largest of rounded values is the rounded largest."""
    edge, behind = Edge(node.name, 0), desk.edges(node.output[0])
    found = [desk.pairs.get(one) for one in behind]
    if edge in desk.pairs or not found or node.output[0] in desk.outputs or any(node.output[1:]):
        return
    if found[0] is not None and all(one is not None and one.grid == found[0].grid for one in found):
        desk.pairs[edge] = found[0]
        note(desk.notes, "Q/DQ pair behind the max pool put before it, too, which computes the same", node.name)
