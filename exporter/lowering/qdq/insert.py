"""Insert Q/DQ pairs into a graph: activations per tensor, weights as INT8 constants per channel, all symmetric."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporter.lowering.qdq.fit import LEVELS, SMALLEST_SCALE, SMALLEST_WEIGHT_SCALE, ScaleFit, fit_scales, shifted_name
from exporter.lowering.qdq.targets import Placement
from runtimes.errors import CalibrationError, LowerError

ZERO_POINT = "zero_point"
LARGEST_SCALE = float(np.finfo(np.float16).max)


def insert_pairs(model: onnx.ModelProto, placement: Placement, thresholds: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of a float graph with the Q/DQ pairs of `placement`.

    Scales are FP16 numbers, stored in FP32 like the rest of the graph here: lowering the graph to FP16 then changes
    none of them, and TensorRT wants one type for scales, weights, biases and activations. Biases stay float; zero
    points are zero.

    If the scale of a weight or of its input is too small for FP16, a power of two is moved from one to the other, which
    changes nothing but the scales; where none fits, the convolution stays in float (see `exporter.lowering.qdq.fit`).

    Args:
        thresholds: observed tensor -> the magnitude that 127 stands for.

    Raises:
        CalibrationError: a tensor has no threshold, or one that is negative or not finite.
        LowerError: the scale of a tensor or a weight is beyond the range of FP16; names it.
    """
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    fit = fit_scales(
        graph, placement, {name: _threshold(name, placement, thresholds) for name in placement.tensors}, values
    )
    constants = [numpy_helper.from_array(np.array(0, np.int8), ZERO_POINT)]
    pairs = {name: _pairs(name, fit, constants) for name in placement.tensors}
    nodes = [node for value in graph.input for node in pairs.get(value.name, ())]
    converted = set()
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        shift = fit.shifts.get(node.name, 0)
        for place, name in enumerate(node.input):
            if (node.name, place) in fit.edges:
                node.input[place] = f"{shifted_name(name, shift)}.dequantized"
        if node.name in fit.shifts:
            name = shifted_name(node.input[1], shift)
            if name not in converted:
                converted.add(name)
                nodes.append(_quantize_weight(np.ldexp(values[node.input[1]], shift), name, constants))
            node.input[1] = f"{name}.dequantized"
        nodes.append(node)
        nodes += [pair for name in node.output for pair in pairs.get(name, ())]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    constants = [tensor for tensor in constants if tensor.name in read]  # nothing may be quantized
    result = helper.make_graph(nodes, graph.name, graph.input, graph.output, [*kept, *constants])
    return helper.make_model(
        result, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )


def _threshold(name: str, placement: Placement, thresholds: Mapping[str, float]) -> float:
    threshold = thresholds.get(placement.ranges[name])
    if threshold is None or not np.isfinite(threshold) or threshold < 0:
        raise CalibrationError(
            f"'{placement.ranges[name]}' has no usable range ({threshold}); calibrate this model again"
        )
    _check_scale(name, threshold / LEVELS)
    return threshold


def _check_scale(name: str, scale: float) -> None:
    if scale > LARGEST_SCALE:
        raise LowerError(
            f"'{name}' holds {scale * LEVELS:.3g}, and its INT8 scale is beyond the range of float16; export in fp32"
        )


def _pairs(name: str, fit: ScaleFit, constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes of a tensor's pairs: one for each power of two that it is divided by, with the division in front."""
    nodes = []
    for shift in fit.shifts_of[name]:
        target = shifted_name(name, shift)
        if shift:
            constants.append(numpy_helper.from_array(np.array(2.0**-shift, np.float32), f"{target}.factor"))
            nodes.append(helper.make_node("Mul", [name, f"{target}.factor"], [target], name=f"{target}.multiply"))
        # No library accepts a scale of zero; a tensor that is always zero quantizes to zero under any other scale.
        scale = np.float16(max(fit.thresholds[name] / LEVELS * 2.0**-shift, SMALLEST_SCALE))
        nodes += _pair(target, scale, constants)
    return nodes


def _pair(name: str, scale: np.float16, constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    constants.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}.scale"))
    return [
        helper.make_node(
            "QuantizeLinear", [name, f"{name}.scale", ZERO_POINT], [f"{name}.quantized"], name=f"{name}.quantize"
        ),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}.quantized", f"{name}.scale", ZERO_POINT],
            [f"{name}.dequantized"],
            name=f"{name}.dequantize",
        ),
    ]


def _quantize_weight(weight: NDArray[np.float32], name: str, constants: list[onnx.TensorProto]) -> onnx.NodeProto:
    """Add a weight as INT8 with a scale for each output channel to `constants`; the node that makes it float again."""
    _check_scale(name, float(np.abs(weight).max()) / LEVELS)
    scales = channel_scales(weight)
    values = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).clip(-LEVELS, LEVELS).astype(np.int8)
    zeros = f"{name}.{ZERO_POINT}"
    constants += [
        numpy_helper.from_array(values, f"{name}.quantized"),
        numpy_helper.from_array(scales, f"{name}.scale"),
        numpy_helper.from_array(np.zeros(len(scales), np.int8), zeros),
    ]
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.quantized", f"{name}.scale", zeros],
        [f"{name}.dequantized"],
        name=f"{name}.dequantize",
        axis=0,
    )


def channel_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of a weight, float32 (output channels,), all FP16 numbers.

    They are rounded up, so that no weight is clipped; a dead channel gets the smallest scale.
    """
    wanted = np.abs(weight.reshape(len(weight), -1)).max(1) / np.float32(LEVELS)
    scales = np.maximum(wanted, SMALLEST_WEIGHT_SCALE).astype(np.float16)
    low = scales.astype(np.float32) < wanted
    scales[low] = np.nextafter(scales[low], np.float16(np.inf))
    return np.asarray(scales, np.float32)
