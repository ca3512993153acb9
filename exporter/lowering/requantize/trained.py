"""A quantized network as it is read: float, and beside it the scales of every tensor that a node reads quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.lowering.qdq.insert import GivenScales
from exporter.lowering.qdq.targets import Edge

BYTES = ("INT8", "UINT8")
REMOVED = "Q/DQ pair removed, with its rounding and clipping,"
"""Begins what is said of a pair that is taken off; where it stood, or what for, follows."""


@dataclass(frozen=True)
class Pair:
    """A Q/DQ pair of an activation.

    Attributes:
        scale: the value of a step.
        low, high: the steps below and above zero: -128 and 127 for INT8 with a zero point of 0; -128 and 127, too, for
            UINT8 with one of 128; 0 and 255 for UINT8 with one of 0.
        type: ONNX's name of the type, such as `UINT8`.
        zero_point: what stands for zero in that type.
        node: the QuantizeLinear's name.
        channels: how many scales there are; `scale` is the first.
    """

    scale: float
    low: int
    high: int
    type: str
    zero_point: int
    node: str
    channels: int = 1

    @property
    def grid(self) -> tuple[float, int, int, int]:
        """What is the same for two pairs that round alike."""
        return self.scale, self.low, self.high, self.channels

    @property
    def top(self) -> float:
        """The largest value that it holds."""
        return self.scale * self.high


@dataclass(frozen=True)
class TrainedWeight:
    """How a weight is stored, by output channel.

    Attributes:
        scales: float32 (output channels,); None for scales along another axis.
        zero_points: int32 (output channels,).
        type: ONNX's name of the type, such as `INT8`.
        node: its DequantizeLinear's name.
    """

    scales: NDArray[np.float32] | None
    zero_points: NDArray[np.int32]
    type: str
    node: str

    def given(self) -> GivenScales | None:
        """The same numbers as INT8 with zero points of 0 where that holds them, else as UINT8; None where scales must
        be chosen anew."""
        limits = integer_limits(self.type)
        if self.scales is None or limits is None:
            return None
        low, high = (limit - self.zero_points for limit in limits)
        if (low >= -128).all() and (high <= 127).all():
            return GivenScales(self.scales, np.zeros_like(self.zero_points), "int8")
        if limits[1] - limits[0] > 255:
            return None
        return GivenScales(self.scales, self.zero_points - limits[0], "uint8")


@dataclass(frozen=True)
class TrainedNetwork:
    """The float network behind a quantized graph, and how it was quantized.

    Attributes:
        model: in FP32, without Q/DQ; nodes have distinct names.
        pairs: input of a node -> the pair that it was read through.
        outputs: output of the graph -> the pair that it came through.
        weights: weight of a Conv, Gemm or MatMul -> how it was stored.
        notes: what was changed -> the nodes at which.
    """

    model: onnx.ModelProto
    pairs: dict[Edge, Pair]
    outputs: dict[str, Pair]
    weights: dict[str, TrainedWeight]
    notes: dict[str, list[str]] = field(default_factory=dict)


def integer_limits(kind: str) -> tuple[int, int] | None:
    """The smallest and the largest number of an integer type, given by ONNX's name; None for other types."""
    if not kind.startswith(("INT", "UINT")):
        return None
    bits = int(kind.removeprefix("U").removeprefix("INT"))
    least = 0 if kind.startswith("U") else -(1 << (bits - 1))
    return least, least + (1 << bits) - 1


def note(notes: dict[str, list[str]], what: str, node: str) -> None:
    """Remember a change and its node."""
    found = notes.setdefault(what, [])
    if node not in found:
        found.append(node)


def merged(first: Pair, second: Pair) -> Pair:
    """The one of two pairs in a row that clips as both do: that of the smaller range, and of the finer steps if the
    ranges are the same."""
    if first.grid == second.grid:
        return first
    return min((first, second), key=lambda pair: (pair.low != 0, pair.top, pair.scale))


def readers(graph: onnx.GraphProto) -> Mapping[str, list[Edge]]:
    """The inputs of nodes that read each tensor."""
    found: dict[str, list[Edge]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            found.setdefault(name, []).append(Edge(node.name, place))
    return found
