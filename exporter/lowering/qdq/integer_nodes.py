"""Count what a quantized graph lets a processor run on integers."""

from __future__ import annotations

import onnx

from exporter.graph.blocks import residual_additions
from exporter.lowering.qdq.targets.cpu import ACTIVATIONS
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE
from runtimes.kernels import KernelCount


def kernel_count(model: onnx.ModelProto) -> KernelCount:
    """How many convolutions and residual additions there are, and how many of them read quantized tensors alone and
    make one, behind their activation or at once."""
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    dequantized = {node.output[0] for node in graph.node if node.op_type == DEQUANTIZE}
    outputs = {value.name for value in graph.output}

    def makes_integers(tensor: str) -> bool:
        found = readers.get(tensor, [])
        if tensor in outputs or not found:
            return False
        if len(found) == 1 and found[0].op_type in ACTIVATIONS:
            return makes_integers(found[0].output[0])
        return all(node.op_type == QUANTIZE for node in found)

    def is_integer(node: onnx.NodeProto) -> bool:
        return dequantized.issuperset(node.input[:2]) and makes_integers(node.output[0])

    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    additions = residual_additions(graph)
    return KernelCount(
        len(convolutions), sum(map(is_integer, convolutions)), len(additions), sum(map(is_integer, additions))
    )
