"""Keep torch's optimiser from dropping the tiny constants that guard a network's divisions.

onnxscript drops the addition of a scalar that `math.isclose` takes for 0, with an absolute tolerance of 1e-8
(`rewriter/_pattern_ir.py`). So `x / (norm + 1e-12)` became `x / norm`, even in FP32, and a picture of one colour gave
NaN. onnxscript looks at scalars only: as vectors of one number the constants stay, and add the same.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

LARGEST_TAKEN_FOR_ZERO = 1.01e-8
"""1e-8, and the rounding of such a number to FP32."""


def keep_guards(model: ir.Model) -> None:
    """Turn the tiny scalars that a graph adds or subtracts into vectors of one number; in place, before optimising."""
    for node in list(model.graph):
        if node.op_type not in ("Add", "Sub"):
            continue
        for place, value in enumerate(node.inputs):
            number, other = _scalar(value), node.inputs[1 - place]
            is_scalar = other is None or (other.shape is not None and len(other.shape) == 0)
            if number is None or is_scalar or not 0 < abs(number.item()) <= LARGEST_TAKEN_FOR_ZERO:
                continue
            vector = ir.node("Constant", [], {"value": ir.tensor(number.reshape(1))})
            model.graph.insert_before(node, vector)
            node.replace_input_with(place, vector.outputs[0])


def _scalar(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of an FP32 constant of rank zero; None for anything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or len(tensor.shape) or tensor.dtype != ir.DataType.FLOAT else tensor.numpy()
