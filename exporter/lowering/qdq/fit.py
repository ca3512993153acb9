"""Fit INT8 scales into FP16, by moving a power of two between a convolution's weight and its input.

A network that takes pixels of 0..255, or of a 12-bit camera 0..4095, has weights in its first convolution that are
smaller by as much. Held at the smallest normal FP16 number, 6.1e-5, their scales left such weights a few levels
(measured: 46 dB of SQNR with pixels of 0..1, 29 with 0..255, 10 with 0..4095). Weights are quantized with their scale
as FP16 holds it, so a scale of few digits does no harm: 2**-19 has six bits. What counts is the product of weight and
input, so a power of two may be moved from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.lowering.qdq.targets import Edge, Placement

LEVELS = 127
"""The largest INT8 value that a range is mapped to; -128 is not used."""
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
"""For an input, which is divided by its scale, so that the scale's digits count."""
SMALLEST_WEIGHT_SCALE = 2.0**-19
"""For a weight."""
ENOUGH_WEIGHT_SCALE = 4 * SMALLEST_WEIGHT_SCALE
"""For the output channel with the largest weights. Channels with smaller ones may then be held at the smallest scale:
their loss is below a quarter of the step with which the layer's output is quantized, as for a dead channel."""
ROOMY_WEIGHT_SCALE = 64 * SMALLEST_WEIGHT_SCALE
"""Scale to which weights are moved, so that their smaller channels keep all levels too."""
MOST_DOUBLINGS = 15
"""Of an input: FP16 holds the factor 2**15, and no 2**16."""
ROUNDS_TO_ZERO = float(np.finfo(np.float16).smallest_subnormal) / 2
"""FP16 rounds smaller magnitudes to zero."""
TOO_SMALL = "FP16 holds no INT8 scales for numbers as small as its weight's and its input's"


@dataclass(frozen=True)
class ScaleFit:
    """The part of a placement whose scales FP16 can hold, and how they are moved; powers of two as exponents.

    Attributes:
        edges: as in `Placement`, without those of nodes that stay in float.
        shifts: convolution -> the power of two that its weight is multiplied and its input divided by; 0 for most.
        shifts_of: tensor -> the powers of two that it is divided by, each for a pair; empty if nothing reads it
            quantized.
        thresholds: tensor -> the magnitude that 127 stands for.
    """

    edges: frozenset[Edge]
    shifts: dict[str, int]
    shifts_of: dict[str, tuple[int, ...]]
    thresholds: Mapping[str, float]


def fit_scales(
    graph: onnx.GraphProto, placement: Placement, thresholds: Mapping[str, float], weights: Mapping[str, NDArray[Any]]
) -> ScaleFit:
    """Find the powers of two; a convolution, pool or addition with numbers too small for any of them stays in float.

    Scales of FP32 fit as they are.
    """
    if not placement.half:
        unshifted: dict[str, tuple[int, ...]] = dict.fromkeys(placement.tensors, (0,))
        return ScaleFit(placement.edges, dict.fromkeys(placement.weights, 0), unshifted, thresholds)
    edges, shifts = set(), {}
    shifts_of: dict[str, set[int]] = {name: set() for name in placement.tensors}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if (node.name, place) not in placement.edges:
                continue
            if node.name in placement.weights:
                shift = _power_of_two(thresholds[name], weights[node.input[1]])
            else:
                shift = 0 if thresholds[name] / LEVELS >= SMALLEST_SCALE or thresholds[name] < ROUNDS_TO_ZERO else None
            if shift is not None:
                edges.add(Edge(node.name, place))
                shifts_of[name].add(shift)
                if node.name in placement.weights:
                    shifts[node.name] = shift
    return ScaleFit(
        frozenset(edges), shifts, {name: tuple(sorted(each, key=abs)) for name, each in shifts_of.items()}, thresholds
    )


def shifted_name(name: str, shift: int) -> str:
    """The name of a tensor once it is multiplied or divided by a power of two; its own for 0."""
    return f"{name}.shifted{shift}" if shift else name


def _power_of_two(threshold: float, weight: NDArray[np.float32]) -> int | None:
    """The exponent of the power of two to multiply a weight and divide its input by; None if none fits both.

    It is negative where the input's scale is the small one.
    """
    own, other = float(np.abs(weight).max()) / LEVELS, threshold / LEVELS
    most = threshold * float(np.abs(weight).reshape(len(weight), -1).sum(1, dtype=np.float64).max())
    if most < ROUNDS_TO_ZERO or (own >= ENOUGH_WEIGHT_SCALE and other >= SMALLEST_SCALE):
        return 0
    fewest = max(-MOST_DOUBLINGS, math.ceil(math.log2(ENOUGH_WEIGHT_SCALE / own)))
    highest = math.floor(math.log2(other / SMALLEST_SCALE))
    if fewest > highest:
        return None
    return highest if other < SMALLEST_SCALE else min(math.ceil(math.log2(ROOMY_WEIGHT_SCALE / own)), highest)
