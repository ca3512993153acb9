"""Which operators DLA has, as NVIDIA lists them (Deep-Learning-Accelerator-SW, operators/README.md)."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.graph.dla_head import NOT_ON_DLA
from exporter.lowering.lint.findings import Finding, findings_at
from exporter.lowering.qdq.view import View

MATHS = (
    "Acos Acosh Asin Asinh Atan Atanh Celu Cosh Div Elu Erf Exp Greater GreaterOrEqual HardSwish HardSigmoid Less "
    "LessOrEqual Log LogSoftmax Min Mod Pow Reciprocal ReduceMax ReduceMin Sign Sinh Softplus Softsign Sqrt Tan "
    "ThresholdedRelu"
)
"""Of these NVIDIA's list says that TensorRT hands none to DLA."""
REWRITTEN = "And DepthToSpace GRU Gather Neg Not Or ScatterElements SpaceToDepth Where Xor"
"""DLA runs these only once they are written in others, which TensorRT does not do."""
UNLISTED = "Ceil Expand Floor Mish NonZero Range ReduceL2 ReduceProd ReduceSum Round ScatterND Tile TopK"
"""NVIDIA's list does not have these. Others that it lacks are not judged: a Cast may become part of a copy."""
ONE_BY_ONE = frozenset(NOT_ON_DLA)
TOGETHER = frozenset(f"{MATHS} {REWRITTEN} {UNLISTED}".split())
ON_DLA = ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "")
"""Types of what an operator reads that are not held against it here: of floats RE803 tells."""


def operator_findings(view: View) -> Iterator[Finding]:
    """RE802: operators of heads node by node, others once for each operator with how many there are.

    What TensorRT computes while it builds, out of constants and fixed sizes, is left out.
    """
    found: dict[str, list[int]] = {}
    known = set(view.constants.names)
    for place, node in enumerate(view.nodes):
        if _is_known(view, place, known):
            known.update(node.output)
        elif node.op_type in ONE_BY_ONE:
            yield from findings_at(place, node, [("RE802", f"{node.op_type} runs on the GPU; see the rule's page")])
        elif reason := _reason(view, place, known):
            found.setdefault(reason, []).append(place)
    for reason, places in found.items():
        more = f", here and at {len(places) - 1} more" if len(places) > 1 else ""
        told = f"{reason} on the GPU{more}; see the rule's page"
        yield from findings_at(places[0], view.nodes[places[0]], [("RE802", told)])


def _is_known(view: View, place: int, known: set[str]) -> bool:
    """Does TensorRT know what a node gives while it builds?"""
    node = view.nodes[place]
    if node.op_type == "Shape":
        sizes = view.shape(node.input[0])
        return sizes is not None and None not in sizes
    return all(name in known for name in node.input if name)


def _reason(view: View, place: int, known: set[str]) -> str:
    """Why an operator does not run on DLA; empty where nothing is known against it."""
    node = view.nodes[place]
    name = node.op_type
    if name in TOGETHER:
        return f"{name} runs"
    if name == "Shape":
        return "a Shape of free sizes runs"
    if name in ("Gemm", "MatMul") and node.input[1] not in known:
        return f"a {name} whose weight is computed runs"
    if name == "Transpose" and view.type(node.input[0]) not in ON_DLA:
        return f"a Transpose of {view.type(node.input[0])} runs"
    return ""
