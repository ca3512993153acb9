"""Fit INT8 scales into FP16: a convolution's weight times its input is all that counts, so a power of two may go from one to the other.

A network that takes pixels of 0..255, or a 12-bit camera's of 0..4095, has weights in its first convolution that are as much smaller. Scales of
weights held at the smallest normal FP16 number, 6.1e-5, left them a few levels (measured: 46 dB of SQNR with pixels of 0..1, 29 with 0..255, 10 with
0..4095). A weight is quantized with its scale as FP16 holds it, so that a scale of few digits is as good as another: 2**-19 has six bits of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.lowering.qdq.targets.tensorrt import Edge, Placement

LEVELS = 127
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
"""Of an input: it is divided by its scale, whose digits count."""
SMALLEST_WEIGHT_SCALE = 2.0**-19
ENOUGH = 4 * SMALLEST_WEIGHT_SCALE
"""For the output channel with the largest weights. One with smaller ones may then be held at the smallest scale: what that makes it lose is below
a quarter of the step that the layer's output is quantized with, as it is for a dead channel."""
ROOMY = 64 * SMALLEST_WEIGHT_SCALE
"""Where weights that are moved are moved to, so that their other channels keep all levels too."""
NOTHING = float(np.finfo(np.float16).smallest_subnormal) / 2
"""FP16 rounds to zero what is below."""
TOO_SMALL = "FP16 holds no INT8 scales for numbers as small as its weight's and its input's"


@dataclass(frozen=True)
class Fit:
    """What is left of a placement, and how its scales are moved.

    Attributes:
        edges: as in `Placement`, without those of what stays in float.
        shifts: convolution -> the power of two that its weight is multiplied by and its input divided by; 0 for most.
        shifts_of: tensor -> the powers of two that it is divided by, for a pair each; none where nothing reads it quantized.
        thresholds: tensor -> the magnitude that 127 stands for.
    """

    edges: frozenset[Edge]
    shifts: dict[str, int]
    shifts_of: dict[str, tuple[int, ...]]
    thresholds: Mapping[str, float]


def fitted(
    graph: onnx.GraphProto, placement: Placement, thresholds: Mapping[str, float], weights: Mapping[str, NDArray[Any]]
) -> Fit:
    """Find the powers of two; a convolution, a pool or a sum whose numbers are too small for any stays in float."""
    edges, shifts = set(), {}
    shifts_of: dict[str, set[int]] = {name: set() for name in placement.tensors}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if (node.name, place) not in placement.edges:
                continue
            if node.name in placement.weights:
                shift = _shift(thresholds[name], weights[node.input[1]])
            else:
                shift = 0 if thresholds[name] / LEVELS >= SMALLEST_SCALE or thresholds[name] < NOTHING else None
            if shift is not None:
                edges.add((node.name, place))
                shifts_of[name].add(shift)
                if node.name in placement.weights:
                    shifts[node.name] = shift
    return Fit(
        frozenset(edges), shifts, {name: tuple(sorted(each, key=abs)) for name, each in shifts_of.items()}, thresholds
    )


def shifted_name(name: str, shift: int) -> str:
    """What a tensor is called that is multiplied or divided by a power of two."""
    return f"{name}.shifted{shift}" if shift else name


def _shift(threshold: float, weight: NDArray[np.float32]) -> int | None:
    """The power of two that lifts a weight at the cost of its input, or, below zero, the other way round; None where there is not room for both."""
    own, other = float(np.abs(weight).max()) / LEVELS, threshold / LEVELS
    most = threshold * float(np.abs(weight).reshape(len(weight), -1).sum(1, dtype=np.float64).max())
    if most < NOTHING or (own >= ENOUGH and other >= SMALLEST_SCALE):
        return 0
    fewest, highest = math.ceil(math.log2(ENOUGH / own)), math.floor(math.log2(other / SMALLEST_SCALE))
    if fewest > highest:
        return None
    return highest if other < SMALLEST_SCALE else min(math.ceil(math.log2(ROOMY / own)), highest)
