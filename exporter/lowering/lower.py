"""Lower an FP32 graph to a precision: the one place that knows the order ranges, placement, correction, cast."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from calibration.table import CalibrationTable
from exporter.lowering.bias_correction import lower_with_correction, with_correction
from exporter.lowering.precisions import Precision
from exporter.lowering.qdq.fit import TOO_SMALL
from exporter.lowering.qdq.targets import QdqTarget, left_in_float
from exporter.lowering.ranges import CalibrationSet, MeasuredRanges, measure_ranges
from exporter.lowering.registry import load_precision, load_target
from exporter.lowering.request import LoweringRequest
from exporter.lowering.sensitivity import measure_sensitivity
from runtimes.block_precision import Sensitivity
from runtimes.parity.budget import Budget
from runtimes.progress import Steps

HALVES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class LoweredGraph:
    """A graph in its precision.

    Attributes:
        table: the ranges that it was calibrated with; None for a precision that needs none.
        budget: what parity allows it.
        sensitivity: what each block costs; None for a precision without calibration, and where there were no pictures.
        with_float_nodes: lowers the same graph again, with the same ranges and these nodes in FP16; None for a
            precision without calibration.
    """

    model: onnx.ModelProto
    table: CalibrationTable | None
    budget: Budget
    sensitivity: Sensitivity | None = None
    with_float_nodes: Callable[[Collection[str]], LoweredGraph] | None = None


def lower(clean: onnx.ModelProto, images: CalibrationSet, request: LoweringRequest, steps: Steps) -> LoweredGraph:
    """Lower a simplified FP32 graph; `clean` is not changed.

    Args:
        images: to calibrate on; not read for a precision that needs no ranges.
        steps: told of each step, and of the convolutions that stay in float.

    Raises:
        CalibrationError: the images, or a given table, do not fit.
        BadInput: a picture or the table cannot be read.
        LowerError: the precision cannot hold the model's values.
        PlanError: there is nothing to quantize.
    """
    precision = load_precision(request.precision)
    tensors = precision.observed_tensors(clean, request.target)
    if not tensors:
        with steps(f"lower to {request.precision}"):
            return LoweredGraph(precision.lower(clean, {}), None, budget_of(precision, clean))
    with steps("calibrate"):
        measured = measure_ranges(clean, tensors, images, request, steps)
    with steps(f"lower to {request.precision}"):
        model, table = lower_with_correction(precision, clean, measured, images, request)
        _report_float_convolutions(clean, model, load_target(request.target), steps)
    budget = budget_of(precision, clean)

    def lower_again(float_nodes: Collection[str]) -> LoweredGraph:
        again = lower_with_correction(precision, clean, measured, images, request, float_nodes)
        return LoweredGraph(again.model, again.table, budget)

    with steps("measure sensitivity"):
        exact = with_correction(clean, table, request.calibrator_name)
        sensitivity = _sensitivity(precision, exact, model, measured, images)
    return LoweredGraph(model, table, budget, sensitivity, lower_again)


def _sensitivity(
    precision: Precision,
    exact: onnx.ModelProto,
    lowered: onnx.ModelProto,
    measured: MeasuredRanges,
    images: CalibrationSet,
) -> Sensitivity | None:
    """What each block costs, on the calibration's pictures; None where a table came without any."""
    if measured.pictures is None:
        return None
    (inputs,) = images.as_inputs([images.preprocess.normalise(measured.pictures)])
    return measure_sensitivity(precision, exact, lowered, inputs)


def budget_of(precision: Precision, clean: onnx.ModelProto) -> Budget:
    """What a precision may cost; no less than half precision does where the network itself computes in that."""
    types = {helper.get_node_attr_value(node, "to") for node in clean.graph.node if node.op_type == "Cast"}
    types |= {tensor.data_type for tensor in clean.graph.initializer}
    own = [load_precision(name).BUDGET for kind, name in HALVES.items() if kind in types]
    return max([precision.BUDGET, *own], key=lambda budget: budget.own_error)


def _report_float_convolutions(
    clean: onnx.ModelProto, lowered: onnx.ModelProto, target: QdqTarget, steps: Steps
) -> None:
    """Say how many convolutions stay in float, for each reason."""
    quantized = {name for node in lowered.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats = [node.name for node in lowered.graph.node if node.op_type == "Conv" and node.input[1] not in quantized]
    reasons = {**dict.fromkeys(floats, TOO_SMALL), **left_in_float(target, clean.graph)}
    convolutions = sum(node.op_type == "Conv" for node in clean.graph.node)
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, one in reasons.items() if one == reason]
        steps.left_out(f"{len(names)} of {convolutions} convolutions stay in FP16, {names[0]} the first: {reason}")
