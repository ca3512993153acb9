"""Find what a graph's types cost, and where versions differ about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from exporter.graph.counts import PREPROCESSING
from exporter.lowering.lint.findings import Finding, Problem, finding, findings_at
from exporter.lowering.lint.versions import TensorRtVersion
from exporter.lowering.qdq.refusals import UNREAD
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, UNKNOWN, View

HALF = ("FLOAT16", "BFLOAT16")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCALES_IN_HALF = 19
"""The first opset whose Q and DQ have scales of FP16."""


def computes_in_half(views: Sequence[View]) -> bool:
    """Whether a convolution or matrix product of a file reads FP16 or BF16."""
    products = [(view, node) for view in views for node in view.nodes if node.op_type in PRODUCTS]
    return any(view.type(node.input[0]) in HALF for view, node in products)


def type_findings(view: View, versions: Sequence[TensorRtVersion], *, in_half: bool) -> Iterator[Finding]:
    """What a graph's types cost, and what of them depends on the version.

    Args:
        in_half: `computes_in_half` of the file.
    """
    outputs = {value.name for value in view.scope.graph.output}
    for place, node in enumerate(view.nodes):
        if in_half:
            yield from findings_at(place, node, _cost_of_fp32(view, node, outputs))
        if node.op_type == QUANTIZE:
            yield from findings_at(place, node, _scale_problems(view, node, versions))


def file_type_findings(views: Sequence[View]) -> Iterator[Finding]:
    """Of the types of the file's inputs, of DOUBLE anywhere, and of scales that ONNX does not allow."""
    view, graph = views[0], views[0].scope.graph
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in stored and view.type(value.name) in UNREAD:
            told = f"it is {view.type(value.name)}, which TensorRT does not read; give it another type"
            yield finding(("RE134", told), value.name)
    wide = [name for one in views for name, kind in one.scope.types.items() if kind == "DOUBLE"]
    if wide:
        yield finding(("RE305", f"{len(dict.fromkeys(wide))} tensors are DOUBLE, and are read as FP32"), wide[0])
    if view.opset < SCALES_IN_HALF:
        halves = [
            (one, node)
            for one in views
            for node in one.nodes
            if node.op_type in (QUANTIZE, DEQUANTIZE) and not node.domain and one.type(node.input[1]) in HALF
        ]
        if halves:
            told = f"{len(halves)} scales are FP16, which ONNX has from opset {SCALES_IN_HALF} on, not {view.opset}"
            yield finding(("RE602", told), halves[0][1].name or halves[0][1].output[0])


def _cost_of_fp32(view: View, node: onnx.NodeProto, outputs: set[str]) -> Iterator[Problem]:
    """What an FP16 graph computes in FP32; preprocessing is meant to."""
    if node.op_type in PRODUCTS and view.type(node.input[0]) == "FLOAT" and not node.name.startswith(PREPROCESSING):
        yield "RE302", "it runs in FP32, and others in FP16; cast its input and weight"
    if node.op_type != "Cast" or view.type(node.input[0]) not in HALF or view.type(node.output[0]) != "FLOAT":
        return
    users = [user for user in view.users(node.output[0]) if user.op_type not in ("Cast", QUANTIZE)]
    if users:
        names = ", ".join(dict.fromkeys(str(user.op_type) for user in users))
        also = ", and it is an output" if node.output[0] in outputs else ""
        yield "RE303", f"what follows it runs in FP32 ({names}){also}; drop it unless the numbers need FP32"


def _scale_problems(view: View, node: onnx.NodeProto, versions: Sequence[TensorRtVersion]) -> Iterator[Problem]:
    read, scale = (view.type(name) for name in node.input[:2])
    if read == scale or UNKNOWN in (read, scale):
        return
    strict = [one.text for one in versions if scale not in one.two_types]
    if strict:
        told = f"its input is {read} and its scale {scale}, which {', '.join(strict)} may refuse"
        yield "RE304", f"{told}; give the scale the input's type"
