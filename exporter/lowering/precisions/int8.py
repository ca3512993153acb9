"""INT8: convolutions on eight-bit integers between explicit Q/DQ pairs, the rest in FP16 or, for a CPU, in FP32."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from exporter.lowering.precisions._cast import cast_graph, with_rounding
from exporter.lowering.qdq.biases import with_biases_behind, with_biases_inside
from exporter.lowering.qdq.insert import insert_pairs
from exporter.lowering.qdq.pairs import placement
from exporter.lowering.qdq.targets import DEFAULT_TARGET, Placement
from runtimes.backends.onnxruntime import rounds_fp16
from runtimes.parity.budget import Budget

BUDGET = Budget(
    own_error=0.05,
    min_agreement=0.98,
    min_sqnr_db=10.0,  # a floor that only something broken falls under; agreement and accuracy decide
    max_accuracy_drop=0.01,
    max_batch_difference=0.05,
    confidence=0.95,
)


def runs_on(model: onnx.ModelProto) -> tuple[str, ...]:
    """The backends that run a lowered graph on a CPU, and so prove it.

    On Python 3.10, whose last onnxruntime truncates FP16, only the simulation, with scales in FP32, does.
    """
    return ("onnxruntime",) if rounds_fp16() or not _is_half(model) else ()


def observed_tensors(model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> tuple[str, ...]:
    """The tensors whose ranges the Q/DQ pairs need.

    Raises:
        PlanError: there is nothing to quantize; says why.
    """
    return placement(model, target).observed


def lower(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    target: str = DEFAULT_TARGET,
    float_nodes: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with Q/DQ pairs where `target` wants them; weights are INT8.

    For a target of half precision the rest is in FP16 between two casts, and the biases of quantized convolutions are
    added behind them, where onnxruntime leaves them as they are; for another it stays in FP32, and the bias of a
    quantized classifier is added behind it, since onnxruntime's kernel takes none in FP32. With all convolutions among
    `float_nodes` it is the graph in FP16, or the graph as it was.

    Raises:
        CalibrationError: `thresholds` lacks a tensor.
        LowerError: a bias or the classifier is beyond the FP16 range; names it.
        PlanError: there is nothing to quantize; says why.
    """
    placed = placement(model, target, float_nodes)
    return with_remainder(insert_pairs(model, placed, thresholds), placed)


def with_remainder(pairs: onnx.ModelProto, placed: Placement) -> onnx.ModelProto:
    """A graph with its pairs in FP32, with the rest of it as `lower` writes it.

    Raises:
        LowerError: a bias or the classifier is beyond the FP16 range; names it.
    """
    if not placed.half:
        return with_biases_behind(pairs, operators=("Gemm",))
    return with_biases_behind(cast_graph(pairs, onnx.TensorProto.FLOAT16))


def simulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for the CPU that rounds everything in FP16 as FP16 arithmetic does. It is run as it is written, with no
    integer kernel, so that its answers are the same on every processor.

    A device adds a convolution's bias to its sums before it rounds them, so the biases are put back inside.
    """
    return with_rounding(with_biases_inside(model), onnx.TensorProto.FLOAT16)


def _is_half(model: onnx.ModelProto) -> bool:
    """Whether the graph computes in FP16 but for its integers."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
