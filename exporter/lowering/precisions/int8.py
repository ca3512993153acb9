"""INT8: convolutions on eight-bit integers between explicit Q/DQ pairs, everything else in FP16."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.precisions._cast import cast_graph, with_rounding
from exporter.lowering.qdq.biases import with_biases_behind, with_biases_inside
from exporter.lowering.qdq.insert import insert_pairs
from exporter.lowering.qdq.targets import DEFAULT_TARGET, Placement, left_in_float
from exporter.lowering.registry import load_target
from runtimes.backends.onnxruntime import rounds_fp16
from runtimes.errors import PlanError
from runtimes.parity.budget import Budget

BUDGET = Budget(
    own_error=0.05,
    min_agreement=0.98,
    min_sqnr_db=10.0,  # a floor that only something broken falls under; agreement and accuracy decide
    max_accuracy_drop=0.01,
    max_batch_difference=0.05,
    confidence=0.95,
)
RUNS_ON = ("onnxruntime",) if rounds_fp16() else ()
"""On Python 3.10, whose last onnxruntime truncates, only the simulation, with scales in FP32, proves the file."""
MOST_REASONS = 3
"""How many convolutions that stay in float one error message explains."""


def observed_tensors(model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> tuple[str, ...]:
    """The tensors whose ranges the Q/DQ pairs need.

    Raises:
        PlanError: there is nothing to quantize; says why.
    """
    return _placement(model, target).observed


def lower(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    target: str = DEFAULT_TARGET,
    float_nodes: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with Q/DQ pairs where `target` wants them, the rest in FP16 between two casts; weights are INT8.

    The biases of quantized convolutions are added behind them, where onnxruntime leaves them as they are. With all
    convolutions among `float_nodes` it is the graph in FP16.

    Raises:
        CalibrationError: `thresholds` lacks a tensor.
        LowerError: a bias or the classifier is beyond the FP16 range; names it.
        PlanError: there is nothing to quantize; says why.
    """
    pairs = insert_pairs(model, _placement(model, target, float_nodes), thresholds)
    return with_biases_behind(cast_graph(pairs, onnx.TensorProto.FLOAT16))


def _placement(model: onnx.ModelProto, name: str, float_nodes: Collection[str] = ()) -> Placement:
    target = load_target(name)
    placement = target.place_pairs(model, float_nodes)
    if placement.weights or float_nodes:
        return placement
    reasons = left_in_float(target, model.graph)
    why = "; ".join(f"'{name}' stays in float, {reason}" for name, reason in list(reasons.items())[:MOST_REASONS])
    more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    raise PlanError(
        "expected a convolution that --int8 can quantize, "
        f"got {f'none: {why}{more}' if reasons else 'a network without any'}; take --fp16"
    )


def simulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for the CPU that rounds everything but INT8 as FP16 arithmetic does.

    A device adds a convolution's bias to its sums before it rounds them, so the biases are put back inside.
    """
    return with_rounding(with_biases_inside(model), onnx.TensorProto.FLOAT16)
