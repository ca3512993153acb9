"""Lower an FP32 graph to a precision: the one place that knows the order equalize, ranges, correct, place, cast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.table import CalibrationTable, arrays_from_lists, lists_from_arrays
from exporter.lowering.bias_correction import (
    classifier,
    classifier_correction,
    find_corrections,
    subtract_from_biases,
    with_classifier_correction,
)
from exporter.lowering.equalize import factors_of_tensors, with_factors
from exporter.lowering.precisions import Precision
from exporter.lowering.qdq.fit import TOO_SMALL
from exporter.lowering.qdq.pairs import placement
from exporter.lowering.qdq.targets import QdqTarget, left_in_float
from exporter.lowering.ranges import CalibrationSet, few_inputs, given_table, measure_ranges
from exporter.lowering.registry import load_precision, load_target
from exporter.lowering.repairs import Bench, choose_calibrator, choose_heads, find_factors
from exporter.lowering.requantize.mend import mended
from exporter.lowering.request import CALIBRATOR, LoweringRequest
from exporter.lowering.sensitivity import measure_sensitivity
from runtimes.block_precision import Sensitivity
from runtimes.errors import PlanError
from runtimes.parity.budget import Budget
from runtimes.progress import Steps

HALVES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class LoweredGraph:
    """A graph in its precision.

    Attributes:
        exact: the FP32 graph that was lowered, without the correction of its biases: what came in, its channels
            equalized where that helps.
        table: the ranges that it was calibrated with; None for a precision that needs none.
        budget: what parity allows it.
        sensitivity: what each block costs; None for a precision without calibration, and where there were no pictures.
        with_float_nodes: lowers the same graph again, with the same ranges and these nodes in FP16; None for a
            precision without calibration.
        with_calibrator: lowers the same graph again, with the ranges of the calibrator of that name; likewise.
    """

    model: onnx.ModelProto
    exact: onnx.ModelProto
    table: CalibrationTable | None
    budget: Budget
    sensitivity: Sensitivity | None = None
    with_float_nodes: Callable[[Collection[str]], LoweredGraph] | None = None
    with_calibrator: Callable[[str], LoweredGraph] | None = None

    @property
    def factors(self) -> dict[str, NDArray[np.float32]]:
        """What the channels of tensors of `exact` are divided by: tensor -> float32 (channels,)."""
        return {} if self.table is None else factors_of_tensors(self.exact, arrays_from_lists(self.table.factors))


@dataclass(frozen=True)
class _Calibrated:
    """A float graph whose ranges are known, ready to be lowered.

    Attributes:
        exact: the float graph, its channels equalized.
        corrections: what is taken off the biases, by node.
        heads: the classifiers that stay in float, by their nodes' names.
        bench: to measure with; None where there are no pictures.
    """

    request: LoweringRequest
    exact: onnx.ModelProto
    table: CalibrationTable
    calibrator: str
    corrections: Mapping[str, NDArray[np.float32]]
    heads: frozenset[str]
    bench: Bench | None


def lower(clean: onnx.ModelProto, images: CalibrationSet, request: LoweringRequest, steps: Steps) -> LoweredGraph:
    """Lower a simplified FP32 graph; `clean` is not changed.

    Args:
        images: to calibrate on; not read for a precision that needs no ranges.
        steps: told of each step, and of the convolutions that stay in float.

    Raises:
        CalibrationError: the images, or a given table, do not fit.
        BadInput: a picture or the table cannot be read.
        LowerError: the precision cannot hold the model's values.
        PlanError: there is nothing to quantize, or what is to be quantized is in half precision itself.
    """
    precision = load_precision(request.precision)
    budget = budget_of(precision, clean)
    if not precision.observed_tensors(clean, request.target):
        with steps(f"lower to {request.precision}"):
            return LoweredGraph(precision.lower(clean, {}), clean, None, budget)
    check_float_weights(clean, request.target)
    inputs = few_inputs(images, request)
    if request.calibration is not None:
        with steps("calibrate"):
            known = _from_table(clean, images, request, inputs)
    else:
        assert inputs is not None, "there are pictures where no table is given"
        known = _measure(clean, images, request, inputs, steps)
    with steps(f"lower to {request.precision}"):
        lowered = _lower(known, budget)
        _report_float_convolutions(clean, lowered.model, load_target(request.target), steps)
    if inputs is None:
        return lowered
    with steps("measure sensitivity"):
        exact = with_classifier_correction(known.exact, lowered.table)
        return replace(lowered, sensitivity=measure_sensitivity(precision, exact, lowered.model, inputs))


def lower_quantized(
    model: onnx.ModelProto, request: LoweringRequest, steps: Steps
) -> tuple[LoweredGraph, tuple[str, ...]]:
    """Bring a graph that is quantized already to a target's form, with its own scales.

    Returns:
        the graph, and what was changed in it, in words.

    Raises:
        BadInput, LowerError, PlanError: as `exporter.lowering.requantize.mend.mended`.
    """
    with steps(f"lower to {request.precision}"):
        found = mended(model, request.target)
        return LoweredGraph(found.model, found.exact, None, load_precision(request.precision).BUDGET), found.said


def _measure(
    clean: onnx.ModelProto, images: CalibrationSet, request: LoweringRequest, inputs: NDArray[Any], steps: Steps
) -> _Calibrated:
    """Equalize the channels, measure all ranges, and choose among them, choose whether classifiers are quantized, and
    correct the biases, all by the outputs' error."""
    repairs = []
    with steps("equalize"):
        bench = Bench.of(clean, request.target, inputs)
        factors, said = find_factors(clean, bench)
        repairs.append(said)
    exact = with_factors(clean, factors)
    with steps("calibrate"):
        table = measure_ranges(clean, exact, images, request, steps)
        heads = choose_heads(exact, table.thresholds(request.calibrator or CALIBRATOR), bench)
    repairs.append(heads.said)
    bench = replace(bench, heads=heads.in_float)
    calibrator, error = request.calibrator, None
    if calibrator is None:
        with steps("choose ranges"):
            calibrator, said, error = choose_calibrator(exact, table, bench)
            repairs.append(said)
    with steps("correct biases"):
        corrections, said = find_corrections(exact, table.thresholds(calibrator), bench, error)
        repairs.append(said)
    table = replace(table, factors=lists_from_arrays(factors), repairs=[one for one in repairs if one])
    return _Calibrated(request, exact, table, calibrator, corrections, heads.in_float, bench)


def _from_table(
    clean: onnx.ModelProto, images: CalibrationSet, request: LoweringRequest, inputs: NDArray[Any] | None
) -> _Calibrated:
    """All of it as a given table has it; what it has not is measured, if there are pictures."""
    tensors = load_precision(request.precision).observed_tensors(clean, request.target)
    table = given_table(clean, tensors, images, request)
    exact = with_factors(clean, arrays_from_lists(table.factors))
    heads = frozenset(placement(clean, request.target).classifiers).intersection(table.float_nodes)
    bench = None if inputs is None else replace(Bench.of(clean, request.target, inputs), heads=heads)
    calibrator = request.calibrator or table.calibrator
    if not calibrator:
        calibrator = CALIBRATOR if bench is None else choose_calibrator(exact, table, bench).calibrator
    return _with_calibrator(_Calibrated(request, exact, table, calibrator, {}, heads, bench), calibrator)


def _with_calibrator(known: _Calibrated, calibrator: str) -> _Calibrated:
    """The same with another calibrator, and the corrections for it: the table's, or measured if there are pictures."""
    corrections = arrays_from_lists(known.table.corrections.get(calibrator, {}))
    if calibrator not in known.table.corrections and known.bench is not None:
        corrections, _ = find_corrections(known.exact, known.table.thresholds(calibrator), known.bench)
    return replace(known, calibrator=calibrator, corrections=corrections)


def _lower(known: _Calibrated, budget: Budget, float_nodes: Collection[str] = ()) -> LoweredGraph:
    """Lower the graph with these nodes and `known.heads` in float; the classifier's correction is for the errors of the
    others, so it is measured again."""
    float_nodes = known.heads.union(float_nodes)
    request, thresholds, head = known.request, known.table.thresholds(known.calibrator), classifier(known.exact)
    kept = {name: each for name, each in known.corrections.items() if name == head or name not in float_nodes}
    is_measured = head in kept and set(float_nodes) == set(known.table.float_nodes)
    if known.bench is not None and head is not None and not is_measured:
        kept.pop(head, None)
        corrected = subtract_from_biases(known.exact, kept)
        kept |= classifier_correction(corrected, known.bench.error(corrected, thresholds, float_nodes))
    table = replace(
        known.table,
        calibrator=known.calibrator,
        corrections={**known.table.corrections, known.calibrator: lists_from_arrays({**known.corrections, **kept})},
        float_nodes=sorted(float_nodes),
    )
    corrected = subtract_from_biases(known.exact, kept)
    model = load_precision(request.precision).lower(corrected, thresholds, request.target, float_nodes)

    def with_float_nodes(nodes: Collection[str]) -> LoweredGraph:
        return _lower(known, budget, nodes)

    def with_calibrator(name: str) -> LoweredGraph:
        return _lower(_with_calibrator(known, name), budget, float_nodes)

    return LoweredGraph(model, known.exact, table, budget, None, with_float_nodes, with_calibrator)


def budget_of(precision: Precision, clean: onnx.ModelProto) -> Budget:
    """What a precision may cost; no less than half precision does where the network itself computes in that."""
    types = {helper.get_node_attr_value(node, "to") for node in clean.graph.node if node.op_type == "Cast"}
    types |= {tensor.data_type for tensor in clean.graph.initializer}
    own = [load_precision(name).BUDGET for kind, name in HALVES.items() if kind in types]
    return max([precision.BUDGET, *own], key=lambda budget: budget.own_error)


def check_float_weights(clean: onnx.ModelProto, target: str) -> None:
    """Refuse a network that computes convolutions in half precision itself: ranges and scales are those of FP32.

    Raises:
        PlanError: names the first.
    """
    weights = set(load_target(target).place_pairs(clean).weights)
    types = {tensor.name: tensor.data_type for tensor in clean.graph.initializer}
    for node in clean.graph.node:
        if node.name in weights and types.get(node.input[1], TensorProto.FLOAT) != TensorProto.FLOAT:
            raise PlanError(
                f"--int8 takes networks that compute in FP32, and the weight of '{node.name}' is in half precision; "
                "call .float() on the network"
            )


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
        steps.left_out(f"{len(names)} of {convolutions} convolutions stay in float, {names[0]} the first: {reason}")
