"""BF16: weights, activations and arithmetic in bfloat16, between an FP32 input and output.

Its range is FP32's, its mantissa has 7 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.opsets import BF16_OPSET
from exporter.lowering.precisions._cast import cast_graph, with_rounding
from exporter.lowering.qdq.targets import DEFAULT_TARGET
from runtimes.errors import LowerError
from runtimes.parity.budget import Budget

BUDGET = Budget(own_error=5e-2, max_relative_error=5e-2, min_agreement=0.98, max_batch_difference=5e-2)
IR_VERSION = 10
"""The lowest ONNX IR version for BF16_OPSET."""


def runs_on(model: onnx.ModelProto) -> tuple[str, ...]:
    """None: ONNX Runtime's CPU provider has no BF16 convolution, so the simulation is the proof."""
    return ()


def observed_tensors(model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> tuple[str, ...]:
    """None: this precision needs no ranges."""
    return ()


def lower(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    target: str = DEFAULT_TARGET,
    float_nodes: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph in BF16 between two casts.

    Raises:
        LowerError: the graph's opset has no BF16 convolution, or a constant is beyond the BF16 range (3.39e38).
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset < BF16_OPSET:
        raise LowerError(
            f"expected a graph of opset {BF16_OPSET} or newer, got {opset}, whose convolutions take no BF16; "
            f"trace it in {BF16_OPSET}"
        )
    narrow = cast_graph(model, onnx.TensorProto.BFLOAT16)
    narrow.ir_version = max(narrow.ir_version, IR_VERSION)
    return narrow


def simulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for the CPU that rounds as BF16 arithmetic does."""
    return with_rounding(model, onnx.TensorProto.BFLOAT16)
