"""Put the Q/DQ pairs of a target into a float graph: where it wants them, by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.qdq.insert import insert_pairs
from exporter.lowering.qdq.targets import DEFAULT_TARGET, Placement, left_in_float
from exporter.lowering.registry import load_target
from runtimes.errors import PlanError

MOST_REASONS = 3
"""How many convolutions that stay in float one error message explains."""


def placement(model: onnx.ModelProto, target: str = DEFAULT_TARGET, float_nodes: Collection[str] = ()) -> Placement:
    """What a target quantizes in a float graph.

    Args:
        float_nodes: names of the nodes that read nothing quantized.

    Raises:
        PlanError: there is nothing to quantize; says why.
    """
    plugin = load_target(target)
    found = plugin.place_pairs(model, float_nodes)
    if found.weights or float_nodes:
        return found
    reasons = left_in_float(plugin, model.graph)
    why = "; ".join(f"'{name}' stays in float, {reason}" for name, reason in list(reasons.items())[:MOST_REASONS])
    more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    raise PlanError(
        "expected a convolution that --int8 can quantize, "
        f"got {f'none: {why}{more}' if reasons else 'a network without any'}; take --fp16"
    )


def with_pairs(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    target: str = DEFAULT_TARGET,
    float_nodes: Collection[str] = (),
) -> onnx.ModelProto:
    """The float graph with the pairs of a target; weights are INT8, all else stays FP32.

    Args:
        thresholds: observed tensor -> the magnitude that 127 stands for.

    Raises:
        CalibrationError: `thresholds` lacks a tensor.
        LowerError: a scale is beyond the range of FP16; names it.
        PlanError: there is nothing to quantize; says why.
    """
    return insert_pairs(model, placement(model, target, float_nodes), thresholds)
