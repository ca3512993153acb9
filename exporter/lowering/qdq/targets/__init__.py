"""Plug-ins: where a target wants Q/DQ pairs. The file's name is the name of `--target`; each satisfies `QdqTarget`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import onnx

DEFAULT_TARGET = "tensorrt"
"""The target where none is named."""


class Edge(NamedTuple):
    """An input of a node: the node's name, and the input's place among its inputs."""

    node: str
    place: int


class Stored(NamedTuple):
    """How a target holds a quantized tensor: numpy's type, the number that stands for 0, and the steps from there to
    the largest value."""

    type: str
    zero_point: int
    levels: int


SIGNED = Stored("int8", 0, 127)
"""From -127 to 127; -128 is not used."""


@dataclass(frozen=True)
class Placement:
    """What to quantize in a graph, and how.

    Attributes:
        edges: every input that is fed quantized.
        tensors: the tensors on those edges, in the graph's order; each gets one Q/DQ pair.
        ranges: tensor -> the tensor whose range it takes: itself, except behind a max pool or a Flatten.
        weights: the names of the convolutions and classifiers whose weights are quantized.
        classifiers: those of `weights` that are Gemm nodes.
        stored: how tensors are held; `SIGNED` those that are not named.
        narrow: the names of those of `weights` that take 7 bits, so that sums of two products fit into 16.
        half: scales are FP16 numbers, and all that is not quantized computes in FP16; else in FP32.
    """

    edges: frozenset[Edge]
    tensors: tuple[str, ...]
    ranges: dict[str, str]
    weights: tuple[str, ...]
    classifiers: tuple[str, ...] = ()
    stored: Mapping[str, Stored] = field(default_factory=dict)
    narrow: frozenset[str] = frozenset()
    half: bool = True

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be measured, in the graph's order."""
        return tuple(dict.fromkeys(self.ranges[name] for name in self.tensors))


class QdqTarget(Protocol):
    """What a target's file defines."""

    @property
    def ON_INTEGERS(self) -> bool:  # a constant of the file
        """Whether processors run its graphs on integers, which is then counted; else they are simulated there."""

    def place_pairs(self, model: onnx.ModelProto, float_nodes: Collection[str] = ()) -> Placement:
        """Choose what to quantize in a float graph with folded batch norms and distinct node names.

        Args:
            float_nodes: names of the nodes that read nothing quantized, since their accuracy is wanted.
        """

    def places_left_in_float(self, graph: onnx.GraphProto) -> dict[int, str]:
        """The convolutions that the target leaves in float: place among the graph's nodes -> reason.

        Takes any graph, quantized ones too, whose nodes may have no names, or the same name twice.
        """


def left_in_float(target: QdqTarget, graph: onnx.GraphProto) -> dict[str, str]:
    """The convolutions that `target` leaves in float: name -> reason; nodes must have distinct names."""
    return {graph.node[place].name: reason for place, reason in target.places_left_in_float(graph).items()}
