"""Residual blocks of a graph, found by its additions; for graphs of any origin, whatever their nodes are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx


@dataclass(frozen=True)
class Block:
    """A stretch of the graph: the stem, a residual block, or the head.

    Attributes:
        name: what its convolutions' names begin with, `layer1.0`; `stem` and `head` at the ends.
        nodes: places in the graph's list of nodes, ascending.
        addition: the residual addition that ends it, as a place in that list; None for the stem and the head.
        ends: the tensors that leave it. One for the stem and a residual block: where the next block's branches part, which is behind the
            activation that follows the addition. For the head, the graph's outputs that no block before it gives.
    """

    name: str
    nodes: tuple[int, ...]
    addition: int | None
    ends: tuple[str, ...]


def residual_additions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The additions of two computed tensors, one of them behind a convolution. One of a constant is a bias; before the first, preprocessing."""
    constants = {tensor.name for tensor in graph.initializer}
    convolved: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" or convolved.intersection(node.input):
            convolved.update(node.output)
    return [node for node in graph.node if node.op_type == "Add" and convolved.intersection(node.input) and not constants.intersection(node.input)]


def blocks(graph: onnx.GraphProto) -> tuple[Block, ...]:
    """Every node in exactly one block, in the graph's order; nodes must be in topological order."""
    producers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    left = set(range(len(graph.node)))

    def taken(tensor: str) -> list[int]:
        """What `tensor` is computed from and no block has yet."""
        found, tensors = [], [tensor]
        while tensors:
            place = producers.get(tensors.pop())
            if place in left:
                left.remove(place)
                found.append(place)
                tensors += graph.node[place].input
        return found

    members: list[list[int]] = [[]]
    ends: list[tuple[str, ...]] = [()]
    additions = residual_additions(graph)
    for addition in additions:
        parted = parting(graph, addition)
        if parted is not None and (behind := taken(parted)):
            members[-1] += behind
            ends[-1] = (parted,)
        members.append(taken(addition.output[0]))
        ends.append((addition.output[0],))
    if additions and (behind := _until_next_fork(graph, additions[-1].output[0], left)):
        members[-1] += behind
        ends[-1] = (graph.node[behind[0]].output[0],)
    members.append(list(left))
    ends.append(tuple(value.name for value in graph.output if producers.get(value.name) in left))
    sums = [None, *(producers[addition.output[0]] for addition in additions), None]
    names = ["stem", *(_name(graph, places, place) for places, place in zip(members[1:-1], sums[1:-1], strict=True)), "head"]
    return tuple(Block(*one) for one in zip(names, (tuple(sorted(places)) for places in members), sums, ends, strict=True))


def parting(graph: onnx.GraphProto, addition: onnx.NodeProto) -> str | None:
    """The tensor where the two branches of a residual addition part; None where they share nothing."""
    return _parting(graph, *_branches(graph, addition))


def shortcut_of(graph: onnx.GraphProto, addition: onnx.NodeProto) -> int:
    """Which input of a residual addition is the shortcut: the one with fewer convolutions back to where the two branches parted."""
    first, second = _branches(graph, addition)
    parted = _parting(graph, first, second)
    return 0 if parted is not None and first[parted] < second[parted] else 1


def _branches(graph: onnx.GraphProto, addition: onnx.NodeProto) -> tuple[dict[str, int], dict[str, int]]:
    first, second = (convolutions_back(graph.node, name) for name in addition.input[:2])
    return first, second


def _parting(graph: onnx.GraphProto, first: dict[str, int], second: dict[str, int]) -> str | None:
    """The nearest tensor that both are computed from, by convolutions, and of those equally near the last: shapes and constants come before it."""
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    return min((name for name in first if name in second), key=lambda name: (first[name] + second[name], -places.get(name, -1)), default=None)


def convolutions_back(nodes: Sequence[onnx.NodeProto], start: str) -> dict[str, int]:
    """For every tensor that `start` is computed from: the most convolutions between the two. Nodes are in topological order."""
    furthest: defaultdict[str, int] = defaultdict(lambda: -1, {start: 0})
    for node in reversed(nodes):
        reached = max((furthest[name] for name in node.output if name in furthest), default=-1)
        if reached >= 0:
            for name in node.input:
                furthest[name] = max(furthest[name], reached + (node.op_type == "Conv"))
    return dict(furthest)


def _until_next_fork(graph: onnx.GraphProto, tensor: str, left: set[int]) -> list[int]:
    """The activation behind the last addition, which belongs to its block as the others' do."""
    users = [place for place, node in enumerate(graph.node) if tensor in node.input]
    if len(users) != 1 or graph.node[users[0]].op_type != "Relu":
        return []
    left.discard(users[0])
    return users


def _name(graph: onnx.GraphProto, places: Sequence[int], addition: int | None) -> str:
    """What the convolutions' names have in common, part by part; else the addition's own name."""
    names = [graph.node[place].name for place in places if graph.node[place].op_type == "Conv"]
    separator = "/" if any("/" in name for name in names) else "."
    parts = zip(*(name.split(separator)[:-1] for name in names), strict=False)
    common = separator.join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))
    assert addition is not None
    return common or graph.node[addition].name or graph.node[addition].output[0]
