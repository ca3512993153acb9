"""Take the mean error of quantization off the bias of the classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.collect import BATCH
from calibration.table import CalibrationTable
from exporter.lowering.precisions import Precision
from exporter.lowering.ranges import CalibrationSet, Measured
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.parity.compare import is_classifier


def lower_with_correction(
    precision: Precision, model: onnx.ModelProto, measured: Measured, images: CalibrationSet, calibrator: str
) -> tuple[onnx.ModelProto, CalibrationTable]:
    """The graph lowered with the table's thresholds and its mean error taken off the classifier's bias, and the table with that correction.

    Quantizing shifts activations a little, always to the same side, and the shifts add up over the blocks: of a random ResNet-101's error
    two thirds were the same for every image (41.6 dB of SQNR with them, 46.6 dB without). A bias can hold that part (Finkelstein, Almog
    and Grobman 2019, arXiv 1906.03193; Nagel et al. 2019, arXiv 1906.04721, section 4.2). A table that has the correction is applied as
    it stands; without pictures to measure it on, there is none.
    Features have no classifier, and what stands before a ReLU cannot be corrected behind it: their graph is lowered as it is.
    """
    table, pictures = measured.table, measured.pictures
    thresholds = table.thresholds(calibrator)
    lowered = precision.lower(model, thresholds)
    if not is_classifier(value.name for value in model.graph.output):
        return lowered, table
    if calibrator not in table.corrections:
        if pictures is None:
            return lowered, table
        batches = (images.preprocess.normalise(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH))
        simulation = precision.simulated(lowered)
        assert simulation is not None, "a precision that is calibrated rounds otherwise than a CPU"
        error = mean_error(model, simulation, images.fed(batches))
        table = replace(table, corrections={**table.corrections, calibrator: [float(f"{value:.6g}") for value in error]})
    biased = with_bias_less(model, np.array(table.corrections[calibrator], np.float32))
    return (lowered, table) if biased is None else (precision.lower(biased, thresholds), table)


def mean_error(exact: onnx.ModelProto, lowered: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The mean over images of what `lowered` answers more than `exact`: float64 (classes,)."""
    differences = []
    with OnnxRuntime.from_bytes(exact.SerializeToString()) as one, OnnxRuntime.from_bytes(lowered.SerializeToString()) as other:
        source, result = one.inputs[0].name, one.outputs[0].name
        for batch in batches:
            differences.append(other.run({source: batch})[result].astype(np.float64) - one.run({source: batch})[result])
    mean: NDArray[np.float64] = np.concatenate(differences).mean(0)
    return mean


def with_bias_less(model: onnx.ModelProto, correction: NDArray[np.float32]) -> onnx.ModelProto | None:
    """A copy whose classifier's bias is less by `correction`; None where the output is not a classifier's with a bias."""
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    if last.op_type != "Gemm" or len(last.input) < 3:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name == last.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - correction, tensor.name))
    return result


def with_correction(graph: onnx.ModelProto, table: CalibrationTable | None, calibrator: str) -> onnx.ModelProto:
    """The FP32 graph with what a calibration takes off its classifier's bias; as it is where there is nothing to take off."""
    correction = None if table is None else table.corrections.get(calibrator)
    biased = None if correction is None else with_bias_less(graph, np.array(correction, np.float32))
    return graph if biased is None else biased
