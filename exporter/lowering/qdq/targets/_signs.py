"""Find the tensors of a graph that hold no negative values, whatever it is fed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus")
KEPT = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Add", "Sum", "Mul", "Concat",
    "Identity", "Cast", "Reshape", "Flatten", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze",
)  # fmt: skip
"""Operators that make no negative values of values that are none. Not Resize, whose cubic curve overshoots."""
UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.BOOL)


def tensors_without_negatives(graph: onnx.GraphProto) -> set[str]:
    """The tensors, constants among them, all of whose values are at least 0."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    found = {value.name for value in graph.input if value.type.tensor_type.elem_type in UNSIGNED}
    found |= {name for name, tensor in values.items() if _is_positive(tensor)}
    for node in graph.node:
        known = [name in found for name in node.input if name and not _is_shape(node, name)]
        if (
            node.op_type in POSITIVE
            or (node.op_type in KEPT and known and all(known))
            or (node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in found)
        ):
            found.update(node.output)
    return found


def _is_shape(node: onnx.NodeProto, name: str) -> bool:
    """Whether an input says how to rearrange the first one, and adds no values."""
    return node.op_type not in ("Add", "Sum", "Mul", "Concat") and name != node.input[0]


def _is_positive(tensor: TensorProto) -> bool:
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        return False
    return bool((np.asarray(numpy_helper.to_array(tensor)) >= 0).all())
