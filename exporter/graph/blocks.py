"""Find a graph's residual blocks by its additions, whatever its nodes are called and whoever made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx

from exporter.graph.facts import CONVOLUTIONS, constant_names

ADDITIONS = ("Add", "Sum")


@dataclass(frozen=True)
class Block:
    """A part of the graph: the stem, a residual block, or the head.

    Attributes:
        name: the common beginning of its convolutions' names, such as `layer1.0`; `stem` and `head` for the two others.
        nodes: indices in the graph's list of nodes, ascending.
        addition: index of the residual addition that ends the block; None for the stem and the head.
        ends: the tensors that leave it. For the stem and a residual block it is one: where the next block's branches
            fork, which is after the activation that follows the addition. For the head they are the graph's outputs
            that no earlier block makes.
    """

    name: str
    nodes: tuple[int, ...]
    addition: int | None
    ends: tuple[str, ...]


@dataclass(frozen=True)
class Residual:
    """A residual addition.

    Attributes:
        fork: the tensor where its two branches fork; None if they share nothing.
        shortcut: index of the input that is the shortcut: the one with fewer convolutions since the fork.
    """

    addition: onnx.NodeProto
    fork: str | None
    shortcut: int


def residual_additions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The additions of two computed tensors, at least one of them after a convolution.

    An addition of a constant is a bias; one before the first convolution is preprocessing.
    """
    constants = constant_names(graph)
    convolved: set[str] = set()
    for node in graph.node:
        if node.op_type in CONVOLUTIONS or convolved.intersection(node.input):
            convolved.update(node.output)
    additions = (node for node in graph.node if node.op_type in ADDITIONS and len(node.input) == 2)
    return [node for node in additions if convolved.intersection(node.input) and not constants.intersection(node.input)]


def residuals(graph: onnx.GraphProto) -> list[Residual]:
    """The residual additions of a graph, in the order of its nodes, which must be topological."""
    makers = _makers(graph)
    return [_residual(graph.node, addition, makers) for addition in residual_additions(graph)]


def blocks(graph: onnx.GraphProto) -> tuple[Block, ...]:
    """Divide a graph, whose nodes must be in topological order, into blocks: every node is in exactly one."""
    producers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    left = set(range(len(graph.node)))

    def take(tensor: str) -> list[int]:
        """Remove from `left` the nodes that `tensor` is computed by, and return them."""
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
        if residual.fork is not None and (behind := take(residual.fork)):
            members[-1] += behind
            ends[-1] = (residual.fork,)
        members.append(take(residual.addition.output[0]))
        ends.append((residual.addition.output[0],))
    if found and (behind := _until_next_fork(graph, found[-1].addition.output[0], left)):
        members[-1] += behind
        ends[-1] = (graph.node[behind[0]].output[0],)
    members.append(list(left))
    ends.append(tuple(value.name for value in graph.output if producers.get(value.name) in left))
    sums = [None, *(producers[residual.addition.output[0]] for residual in found), None]
    names = [
        "stem",
        *(_block_name(graph, places, place) for places, place in zip(members[1:-1], sums[1:-1], strict=True)),
        "head",
    ]
    return tuple(
        Block(*one) for one in zip(names, (tuple(sorted(places)) for places in members), sums, ends, strict=True)
    )


def _makers(graph: onnx.GraphProto) -> dict[str, int]:
    """Index of the node that makes each tensor that depends on the graph's inputs; -1 for the inputs themselves."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {value.name: -1 for value in graph.input if value.name not in constants}
    for place, node in enumerate(graph.node):
        if any(name in makers for name in node.input):
            makers.update(dict.fromkeys(node.output, place))
    return makers


def _residual(nodes: Sequence[onnx.NodeProto], addition: onnx.NodeProto, makers: Mapping[str, int]) -> Residual:
    """Find where the branches of an addition fork: at the nearest tensor that both are computed from.

    Distances count convolutions. Of tensors equally near it is the last: shapes may be computed from earlier ones.
    """
    first, second = _convolutions_back(nodes, addition.input[:2], makers)
    shared = (name for name in first if name in second)
    fork = min(shared, key=lambda name: (first[name] + second[name], -makers.get(name, -1)), default=None)
    return Residual(addition, fork, 0 if fork is not None and first[fork] < second[fork] else 1)


def _convolutions_back(
    nodes: Sequence[onnx.NodeProto], starts: Sequence[str], makers: Mapping[str, int]
) -> list[dict[str, int]]:
    """For each of two tensors: every tensor that it is computed from, and the most convolutions between the two.

    The search ends at the first tensor through which everything before it goes, since deep networks have hundreds of
    additions.
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
    """The activation after the last addition, which belongs to its block as the other blocks' activations do."""
    users = [place for place, node in enumerate(graph.node) if tensor in node.input]
    if len(users) != 1 or graph.node[users[0]].op_type != "Relu":
        return []
    left.discard(users[0])
    return users


def _block_name(graph: onnx.GraphProto, places: Sequence[int], addition: int | None) -> str:
    """The common beginning of the convolutions' names, part by part; the addition's own name if there is none."""
    names = [graph.node[place].name for place in places if graph.node[place].op_type in CONVOLUTIONS]
    separator = "/" if any("/" in name for name in names) else "."
    parts = zip(*(name.split(separator)[:-1] for name in names), strict=False)
    common = separator.join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))
    assert addition is not None
    return common or graph.node[addition].name or graph.node[addition].output[0]
