"""FP16: weights, activations and arithmetic in half precision, between an FP32 input and output."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.precisions._cast import cast_graph, with_rounding
from exporter.lowering.qdq.targets import DEFAULT_TARGET
from runtimes.parity.budget import Budget

BUDGET = Budget(own_error=1e-2, max_relative_error=1e-2, min_agreement=0.995, max_batch_difference=1e-2)


def runs_on(model: onnx.ModelProto) -> tuple[str, ...]:
    """The backends that run a lowered graph on a CPU, and so prove it."""
    return ("onnxruntime",)


def observed_tensors(model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> tuple[str, ...]:
    """None: this precision needs no ranges."""
    return ()


def lower(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    target: str = DEFAULT_TARGET,
    float_nodes: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph in FP16 between two casts.

    Raises:
        LowerError: a weight is beyond the FP16 range (65504); names it.
    """
    return cast_graph(model, onnx.TensorProto.FLOAT16)


def simulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for the CPU that rounds as FP16 arithmetic does."""
    return with_rounding(model, onnx.TensorProto.FLOAT16)
