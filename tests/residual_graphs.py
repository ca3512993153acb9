"""Small float graphs of convolutions, with and without a residual block, and images for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8
INPUTS = np.random.default_rng(3).normal(size=(12, CHANNELS, 6, 6)).astype(np.float32)


def graph_of(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("logits",), groups: int = 1) -> onnx.ModelProto:
    """A graph of these nodes: a weight is W..., a bias B..., made up for `CHANNELS` channels; `Wfc` is of 3 classes."""
    random = np.random.default_rng(7)
    shapes = {"Wfc": (3, CHANNELS), "Bfc": (3,), "slope": (CHANNELS, 1, 1), "per_channel": (1, CHANNELS, 1, 1)}
    names = dict.fromkeys(name for node in nodes for name in node.input if name[:1] in "WB" or name in shapes)
    weight = (CHANNELS, CHANNELS // groups, 3, 3)
    tensors = [
        numpy_helper.from_array(
            random.normal(size=shapes.get(name, weight if name[0] == "W" else (CHANNELS,))).astype(np.float32), name
        )
        for name in names
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, 6, 6])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def conv(name: str, source: str, *, bias: bool = True, groups: int = 1) -> onnx.NodeProto:
    biases = [f"B{name}"] if bias else []
    return helper.make_node(
        "Conv", [source, f"W{name}", *biases], [f"{name}.out"], name=name, pads=[1] * 4, group=groups
    )


def op(kind: str, *inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output.split(".")[0], **attributes)


def residual(*, groups: int = 1) -> onnx.ModelProto:
    """Stem, pool, a block whose shortcut is the stem's output, and a classifier."""
    return graph_of(
        conv("stem", "input"),
        op("Relu", "stem.out", output="relu.out"),
        op("MaxPool", "relu.out", output="pool.out", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]),
        conv("a", "pool.out", groups=groups),
        op("Relu", "a.out", output="inner.out"),
        conv("b", "inner.out", bias=False),
        op("Add", "b.out", "pool.out", output="sum.out"),
        op("Relu", "sum.out", output="last.out"),
        op("GlobalAveragePool", "last.out", output="gap.out"),
        op("Flatten", "gap.out", output="flat.out"),
        helper.make_node("Gemm", ["flat.out", "Wfc", "Bfc"], ["logits"], name="fc", transB=1),
        groups=1,
    )
