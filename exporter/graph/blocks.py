"""Residual blocks of a graph, found by its additions; for graphs of any origin, whatever their nodes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx

from exporter.graph.facts import CONVOLUTIONS, constant_names

ADDITIONS = ("Add", "Sum")


@dataclass(frozen=True)
class Block:
    """A stretch of the graph: the stem, a residual block, or the head.

    Attributes:
        name: what its convolutions' names begin with, `layer1.0`; `stem` and `head` at the ends.
        nodes: places in the graph's list of nodes, ascending.
        addition: the residual addition that ends it, as a place in that list; None for the stem and the head.
        ends: the tensors that leave it. One for the stem and a residual block: where the next block's branches part,
            which is behind the activation that follows the addition. For the head, the graph's outputs that no block
            before it gives.
    """

    name: str
    nodes: tuple[int, ...]
    addition: int | None
    ends: tuple[str, ...]


@dataclass(frozen=True)
class Residual:
    """A residual addition.

    Attributes:
        parting: the tensor where its two branches part; None where they share nothing.
        shortcut: which of its inputs is the shortcut: the one with fewer convolutions back to there.
    """

    addition: onnx.NodeProto
    parting: str | None
    shortcut: int


def residual_additions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The additions of two computed tensors, one of them behind a convolution. One of a constant is a bias; before the
    first, preprocessing."""
    constants = constant_names(graph)
    convolved: set[str] = set()
    for node in graph.node:
        if node.op_type in CONVOLUTIONS or convolved.intersection(node.input):
            convolved.update(node.output)
    additions = (node for node in graph.node if node.op_type in ADDITIONS and len(node.input) == 2)
    return [node for node in additions if convolved.intersection(node.input) and not constants.intersection(node.input)]


def residuals(graph: onnx.GraphProto) -> list[Residual]:
    """The residual additions of a graph, in its order; nodes must be in topological order."""
    makers = _makers(graph)
    return [_residual(graph.node, addition, makers) for addition in residual_additions(graph)]


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
    found = residuals(graph)
    for residual in found:
        if residual.parting is not None and (behind := taken(residual.parting)):
            members[-1] += behind
            ends[-1] = (residual.parting,)
        members.append(taken(residual.addition.output[0]))
        ends.append((residual.addition.output[0],))
    if found and (behind := _until_next_fork(graph, found[-1].addition.output[0], left)):
        members[-1] += behind
        ends[-1] = (graph.node[behind[0]].output[0],)
    members.append(list(left))
    ends.append(tuple(value.name for value in graph.output if producers.get(value.name) in left))
    sums = [None, *(producers[residual.addition.output[0]] for residual in found), None]
    names = [
        "stem",
        *(_name(graph, places, place) for places, place in zip(members[1:-1], sums[1:-1], strict=True)),
        "head",
    ]
    return tuple(
        Block(*one) for one in zip(names, (tuple(sorted(places)) for places in members), sums, ends, strict=True)
    )


def _makers(graph: onnx.GraphProto) -> dict[str, int]:
    """The place of the node that makes each tensor, of those that depend on the graph's inputs; -1 for the inputs
    themselves."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {value.name: -1 for value in graph.input if value.name not in constants}
    for place, node in enumerate(graph.node):
        if any(name in makers for name in node.input):
            makers.update(dict.fromkeys(node.output, place))
    return makers


def _residual(nodes: Sequence[onnx.NodeProto], addition: onnx.NodeProto, makers: Mapping[str, int]) -> Residual:
    """The branches part at the nearest tensor that both are computed from, by convolutions; of those equally near the
    last: shapes come before it."""
    first, second = _convolutions_back(nodes, addition.input[:2], makers)
    shared = (name for name in first if name in second)
    parting = min(shared, key=lambda name: (first[name] + second[name], -makers.get(name, -1)), default=None)
    return Residual(addition, parting, 0 if parting is not None and first[parting] < second[parting] else 1)


def _convolutions_back(
    nodes: Sequence[onnx.NodeProto], starts: Sequence[str], makers: Mapping[str, int]
) -> list[dict[str, int]]:
    """For each of two tensors and every tensor that it is computed from: the most convolutions between the two.

    Goes no further back than to where all that is left comes through one tensor that both have: deep networks have
    hundreds of additions.
    """
    furthest = [{start: 0} for start in starts]
    waiting = {makers[start] for start in starts if start in makers} - {-1}
    while waiting:
        node = nodes[max(waiting)]
        if len(waiting) == 1 and any(name in furthest[0] and name in furthest[1] for name in node.output):
            break
        waiting.remove(max(waiting))
        inputs = [name for name in node.input if name in makers]
        waiting |= {makers[name] for name in inputs} - {-1}
        for back in furthest:
            reached = max((back[name] for name in node.output if name in back), default=-1)
            if reached >= 0:
                for name in inputs:
                    back[name] = max(back.get(name, -1), reached + (node.op_type in CONVOLUTIONS))
    return furthest


def _until_next_fork(graph: onnx.GraphProto, tensor: str, left: set[int]) -> list[int]:
    """The activation behind the last addition, which belongs to its block as the others' do."""
    users = [place for place, node in enumerate(graph.node) if tensor in node.input]
    if len(users) != 1 or graph.node[users[0]].op_type != "Relu":
        return []
    left.discard(users[0])
    return users


def _name(graph: onnx.GraphProto, places: Sequence[int], addition: int | None) -> str:
    """What the convolutions' names have in common, part by part; else the addition's own name."""
    names = [graph.node[place].name for place in places if graph.node[place].op_type in CONVOLUTIONS]
    separator = "/" if any("/" in name for name in names) else "."
    parts = zip(*(name.split(separator)[:-1] for name in names), strict=False)
    common = separator.join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))
    assert addition is not None
    return common or graph.node[addition].name or graph.node[addition].output[0]
