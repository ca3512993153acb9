"""FP32: the traced graph as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.qdq.targets import DEFAULT_TARGET
from runtimes.parity.budget import Budget

BUDGET = Budget(own_error=1e-5, max_relative_error=1e-5, max_batch_difference=1e-5)


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
    """The graph itself."""
    return model


def simulation(model: onnx.ModelProto) -> None:
    """None: a CPU computes in FP32."""
