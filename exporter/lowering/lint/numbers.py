"""Find constants that are not numbers, or that FP16 does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from exporter.graph.facts import type_name
from exporter.lowering.lint.findings import Finding, Problem, findings_at
from exporter.lowering.qdq.view import View

FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
WEIGHED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "PRelu", "BatchNormalization", "LayerNormalization",
    "InstanceNormalization", "GroupNormalization",
})  # fmt: skip
"""Operators in which an infinite constant is no number that someone meant, as it is in Clip, Pad or Where."""
LARGEST_HALF, SMALLEST_GOOD, SMALLEST_HALF = 65504.0, 2.0**-19, 2.0**-24


def number_findings(view: View) -> Iterator[Finding]:
    """The constants of a graph that are infinite, not a number, too large for FP16, or too small for it."""
    seen: set[str] = set()
    for place, node in enumerate(view.nodes):
        yield from findings_at(place, node, _node_problems(view, node, seen))


def _node_problems(view: View, node: onnx.NodeProto, seen: set[str]) -> Iterator[Problem]:
    for name in dict.fromkeys(node.input):
        tensor = view.constants.tensor(name) if name and name not in seen else None
        if tensor is None or type_name(tensor.data_type) not in FLOATS:
            continue
        values = _values(tensor)
        if values is not None:
            problem = _constant_problem(view, node, name, values)
            if problem is not None:
                seen.add(name)
                yield problem
    epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1.0)
    if 0 < epsilon < SMALLEST_HALF and node.input and view.type(node.input[0]) == "FLOAT16":
        yield "RE503", f"its epsilon of {epsilon:.0e} is 0 in FP16; keep it in FP32, or take 1e-5"


def _constant_problem(view: View, node: onnx.NodeProto, name: str, values: NDArray[Any]) -> Problem | None:
    wrong = np.isnan(values) if node.op_type not in WEIGHED else ~np.isfinite(values)
    if wrong.any():
        return "RE501", f"{int(wrong.sum())} of {values.size} numbers of '{name}' are infinite or no number"
    if node.op_type == "Cast" and view.type(node.output[0]) == "FLOAT16":
        beyond = int((np.isfinite(values) & (np.abs(values) > LARGEST_HALF)).sum())
        if beyond:
            told = f"{beyond} of {values.size} numbers of '{name}' are beyond {LARGEST_HALF:.0f}, and become infinite"
            return "RE502", f"{told}; keep them in FP32"
    if values.size == 1 and view.type(name) == "FLOAT16" and 0 < abs(float(values.ravel()[0])) < SMALLEST_GOOD:
        return "RE503", f"'{name}' is {float(values.ravel()[0]):.1e}, of which FP16 holds few digits; keep it in FP32"
    return None


def _values(tensor: TensorProto) -> NDArray[Any] | None:
    """The numbers of a tensor, as FP32 at least; None if they are in another file, or do not fit its shape."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        values = np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError):
        return None
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
