"""Read off a graph in which precision each of its layers computes."""

from __future__ import annotations

import onnx

from exporter.graph.counts import multiply_accumulates
from exporter.graph.facts import initializer_shapes
from exporter.graph.inference import inferred_graphs
from exporter.lowering.qdq.biases import bias_additions
from exporter.lowering.qdq.lint import DEQUANTIZE
from exporter.lowering.qdq.targets import left_in_float, tensorrt
from exporter.verification.report.records import GraphLayer

NO_LAYERS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Relu",
    "Flatten",
    "Reshape",
    "Transpose",
    "Constant",
    "Identity",
)
"""Operators that convert a type, move values, or are fused into the layer before them."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
SHORT = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16"}


def layers_from_model(model: onnx.ModelProto) -> tuple[GraphLayer, ...]:
    """The graph's layers in its order.

    Biases are left out, also those added behind their convolutions: they are float in every precision.
    """
    own = inferred_graphs(model)[0]
    types, shapes = own.types, own.shapes
    constants = initializer_shapes(model)
    nodes = model.graph.node
    pairs = {node.output[0]: node for node in nodes if node.op_type == DEQUANTIZE}
    floats = left_in_float(tensorrt, model.graph) if pairs else {}
    biases = bias_additions(model.graph)

    def kind(tensor: str) -> str:
        name = types.get(pairs[tensor].input[0] if tensor in pairs else tensor, "unknown")
        return SHORT.get(name, name)

    def read(node: onnx.NodeProto) -> list[str]:
        return (
            [name for name in node.input if name and name not in constants]
            if node.op_type not in WEIGHTED
            else list(node.input[:2])
        )

    def weights(node: onnx.NodeProto) -> str:
        name = node.input[1]
        each = " per channel" if name in pairs and shapes.get(pairs[name].input[1], ()) not in ((), (1,)) else ""
        return kind(name) + each

    return tuple(
        GraphLayer(
            name=node.name or node.output[0],
            operator=node.op_type,
            precision=" + ".join(dict.fromkeys(kind(name) for name in read(node))),
            weights=weights(node) if node.op_type in WEIGHTED else "",
            macs=(multiply_accumulates(node, shapes) or 0) // own.images,
            remark=floats.get(node.name, ""),
        )
        for place, node in enumerate(nodes)
        if node.op_type not in NO_LAYERS and place not in biases
    )
