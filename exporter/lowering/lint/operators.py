"""Find what TensorRT's parser refuses of operators that it has: training modes, outputs, attributes and types.

Each was tried on TensorRT-RTX 1.7.1; `tests/lowering/test_rules_float.py` tries them again.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from exporter.lowering.lint.findings import Problem
from exporter.lowering.qdq.view import View, int_attribute

POOLS = ("MaxPool", "AveragePool", "LpPool")
READS_PIXELS = ("Cast", "CastLike", "DequantizeLinear", "Shape", "Size")
"""Operators that may read a UINT8 input; DequantizeLinear has a rule of its own."""
# fmt: off
ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Equal", "Less", "Greater", "And", "Or", "Xor",
)
"""Operators that the parser refuses below opset 7, where they broadcast by an attribute."""
# fmt: on
BROADCASTS = 7
NO_RESIZE = ("tf_crop_and_resize", "half_pixel_symmetric")


def operator_problems(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    """What the parser refuses at a node, though it has the operator."""
    kind = node.op_type
    if kind in ("BatchNormalization", "Dropout"):
        yield from _training_problems(view, node)
    if kind == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield "RE131", f"it gives its values' places, '{node.output[1]}', too; leave that output out"
    if kind in POOLS and any(one.name == "dilations" and set(one.ints) - {1} for one in node.attribute):
        yield "RE132", "it is dilated; express it by Slice"
    if kind == "Resize":
        yield from _resize_problems(node)
    if node.input and kind in ("Relu", "MatMul") and (found := view.type(node.input[0])) in _integers(kind):
        yield "RE136", f"it reads {found}; cast to float before it"
    if view.opset < BROADCASTS and _broadcasts_by_attribute(view, node):
        yield "RE404", f"{kind} of opset {view.opset} broadcasts in a way of its own; convert the file to opset 13"
    axes = node.input[1] if kind.startswith("Reduce") and len(node.input) > 1 else ""
    if axes and axes not in view.constants.names:
        yield "RE139", f"its axes '{axes}' are computed at run time; write them into an initializer"
    if kind == "Cast" and view.type(node.output[0]) == "UINT8" and node.output[0] not in view.constants.names:
        readers = view.users(node.output[0])
        if readers:
            yield "RE135", f"{readers[0].op_type} reads what it casts to UINT8; cast to INT32 or to float"
    if kind not in READS_PIXELS:
        for name in dict.fromkeys(node.input):
            if name and view.type(name) == "UINT8" and view.maker(name) is None and name not in view.constants.names:
                yield "RE135", f"it reads the input '{name}', which is UINT8; cast to float before it"


def _broadcasts_by_attribute(view: View, node: onnx.NodeProto) -> bool:
    """Whether the parser would have to broadcast; it does not look whether an elementwise operator does."""
    if node.op_type in ELEMENTWISE:
        return True
    if node.op_type not in ("PRelu", "Gemm"):
        return False
    pair = (node.input[-1], node.output[0])  # the slopes, or the bias, and what they are broadcast to
    ranks = {len(shape) for shape in map(view.shape, pair) if shape is not None}
    return len(ranks) > 1


def _integers(kind: str) -> tuple[str, ...]:
    return ("INT32",) if kind == "Relu" else ("INT32", "INT64")


def _training_problems(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    mode = view.constants.value(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
    is_old = node.op_type == "Dropout" and view.opset < BROADCASTS and not int_attribute(node, "is_test", 1)
    if is_old or int_attribute(node, "training_mode", 0) or (mode is not None and mode.any()):
        yield "RE130", f"{node.op_type} is in training mode; export the network in evaluation mode"
    if node.op_type == "BatchNormalization" and view.opset < 9 and not int_attribute(node, "spatial", 1):
        yield "RE137", "it has statistics for each pixel (spatial=0); write it as Mul and Add"


def _resize_problems(node: onnx.NodeProto) -> Iterator[Problem]:
    words = {one.name: one.s.decode(errors="replace") for one in node.attribute}
    if int_attribute(node, "antialias", 0):
        yield "RE133", "it has antialias; resize without, or before the network"
    if (mode := words.get("coordinate_transformation_mode", "")) in NO_RESIZE:
        yield "RE133", f"it has {mode}; take half_pixel, or crop by Slice"
    if (policy := words.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        yield "RE133", f"it has keep_aspect_ratio_policy={policy}; give the sizes themselves"
