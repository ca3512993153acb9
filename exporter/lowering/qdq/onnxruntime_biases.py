"""Find the biases of a quantized graph that a plain session of onnxruntime gets wrong.

The rules are those of onnxruntime's `weight_bias_quantization.cc`, and the tests hold them against the onnxruntime that
is installed (seen in 1.23 to 1.32): the constant bias of a Conv, ConvTranspose or Gemm between DequantizeLinear and
QuantizeLinear becomes INT32, and all that is computed for that is computed in the scales' type. FP16 has neither the
range nor the digits for it; FP32 has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.lowering.lint.findings import Problem
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, View, int_attribute

TURNED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose biases are turned into INT32."""
PASSED = ("Relu", "Clip")
"""Operators that may stand before QuantizeLinear."""
MOST_ERROR = 0.01
"""Of a bias that counts as right, relative to the largest bias of its layer."""
WHERE = "a plain session of onnxruntime from 1.23 on computes this bias in INT32 with a scale of FP16"
REMEDY = "add the bias behind it, as a constant for each channel"


def bias_problems(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    """What a plain session of onnxruntime makes of a node's bias, if that is wrong."""
    scales = _scales(view, node)
    if scales is None or len(node.input) < 3 or node.input[2] not in view.constants.names:
        return
    bias, *factors = (view.constants.value(name) for name in (node.input[2], *scales))
    if bias is None or any(factor is None for factor in factors):
        yield "RE601", f"{WHERE}, and whether that overflows cannot be told here; {REMEDY}"
        return
    first, second = (np.asarray(factor) for factor in factors)
    if bias.ndim != 1 or (second.size > 1 and second.shape != bias.shape):
        return
    wrong = _wrong_channels(bias, first, second)
    if wrong:
        yield "RE601", f"{WHERE}, and is wrong in {wrong} of {bias.size} channels; {REMEDY}"


def _scales(view: View, node: onnx.NodeProto) -> tuple[str, str] | None:
    """The scales of a node's input and weight, of FP16, if onnxruntime turns the node's bias into INT32."""
    pairs = [view.producer(name) for name in node.input[:2]] if node.op_type in TURNED else []
    if len(pairs) < 2 or not _ends_quantized(view, node):
        return None
    source, weight = pairs
    if source is None or weight is None or {source.op_type, weight.op_type} != {DEQUANTIZE}:
        return None
    names = (source.input[1], weight.input[1])
    if {view.type(name) for name in names} != {"FLOAT16"} or not _is_scalar(view, names[0]):
        return None
    if not _is_scalar(view, names[1]):
        axis = int_attribute(weight, "axis", 1)
        axis += len(view.shape(weight.input[0]) or ()) if axis < 0 else 0
        is_last = node.op_type == "Gemm" and int_attribute(node, "transB", 0)  # the outputs' axis of a weight
        if axis != int(node.op_type != "Conv" and not is_last) or int_attribute(weight, "block_size", 0):
            return None
    return names


def _ends_quantized(view: View, node: onnx.NodeProto) -> bool:
    """Whether a QuantizeLinear alone reads what the node makes, behind a ReLU or a Clip or at once."""
    users = view.users(node.output[0])
    while len(users) == 1 and users[0].op_type in PASSED:
        users = view.users(users[0].output[0])
    return len(users) == 1 and users[0].op_type == QUANTIZE


def _is_scalar(view: View, name: str) -> bool:
    return view.shape(name) in ((), (1,))


def _wrong_channels(bias: NDArray[Any], first: NDArray[Any], second: NDArray[Any]) -> int:
    """How many numbers of a bias come back wrong from INT32; onnxruntime rounds each step to FP16."""
    with np.errstate(all="ignore"):
        scale = (first.astype(np.float32).ravel() * second.astype(np.float32).ravel()).astype(np.float16)
        steps = np.rint((bias.astype(np.float32) / scale.astype(np.float32)).astype(np.float16))
        back = (steps.astype(np.float32) * scale.astype(np.float32)).astype(np.float16).astype(np.float32)
        error = np.abs(back - bias.astype(np.float32))
        return int((~(error <= MOST_ERROR * np.abs(bias).astype(np.float32).max())).sum())
