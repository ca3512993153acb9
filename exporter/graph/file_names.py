"""Read names that people know out of those that other tools give their nodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

import onnx

OPERATOR_AT_END = re.compile(
    r"(Conv(2D)?|BiasAdd|Relu6?|FusedBatchNormV?3?|MatMul|Gemm|Mean|(Max|Avg|Average)Pool|add(_\d+)?|Add|Pad|Softmax|"
    r"batchnorm.*|fwd|Clip|Flatten|Reshape|GlobalAveragePool|BatchNormalization)(__\d+)?"
)
"""The last part of a node's name that says no more than its operator."""


def names_in_file(graph: onnx.GraphProto) -> list[str]:
    """The nodes' names, without what all of them begin with and without the operator at their end."""
    given = [[part for part in re.split(r"[/:]", node.name) if part] for node in graph.node]
    paths = [path for path in given if len(path) > 1]
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    shared = shared if len(paths) > 1 else 0
    names = [_name_from_path(path[shared:] or path, node.op_type) for path, node in zip(given, graph.node, strict=True)]
    scopes = {name[:place] for name in names for place, letter in enumerate(name) if letter == "."}
    return [
        f"{name}.{node.op_type.lower()}" if name in scopes else name
        for name, node in zip(names, graph.node, strict=True)
    ]


def _name_from_path(path: Sequence[str], operator: str) -> str:
    """A node's name from its scopes: `layer1`, `layer1.0`, `conv1`, `Conv` is `layer1.0.conv1`."""
    kept = list(path)
    while len(kept) > 1 and (OPERATOR_AT_END.fullmatch(kept[-1]) or kept[-1].rsplit("_", 1)[0] == operator):
        kept.pop()
    parts: list[str] = []
    for part in kept:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return re.sub(r"[^\w.-]+", "_", ".".join(parts)).strip("_.") or operator.lower()
