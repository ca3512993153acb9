"""Write a graph's pools and its classifier in operators that a Jetson's DLA has: the same numbers, other nodes.

TensorRT hands neither GlobalAveragePool nor ReduceMean to DLA, nor the Flatten before a classifier; AveragePool, Conv
and Reshape it does (NVIDIA, Deep-Learning-Accelerator-SW, operators/README.md, and its recipe for ResNet-50,
scripts/prepare_models/resnet50.py). So a pool of the whole map becomes an AveragePool with a window of the map's size,
7x7 for a picture of 224 pixels, and Flatten and Gemm become a 1x1 convolution and a Reshape of what it gives. That
needs sizes that are fixed, the batch's too, which DLA wants anyway.

A graph is rewritten when it is lowered already, so that its ranges and scales are those of any other export.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from exporter.graph.inference import InferredGraph, inferred_graphs
from exporter.graph.intake.wiring import Wiring, add_constant, attributes_of, drop_unused, replace_nodes
from runtimes.errors import PlanError

NOT_ON_DLA = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Flatten", "Squeeze")
"""Operators of residual networks that TensorRT does not hand to DLA; others are not judged."""
LARGEST_WINDOW = 8
"""DLA pools windows of 1 to 8 pixels (NvInfer.h, IPoolingLayer::setWindowSizeNd)."""
POOLS = {"GlobalAveragePool": "AveragePool", "GlobalMaxPool": "MaxPool"}
THROUGH = ("Cast", "QuantizeLinear", "DequantizeLinear", "Relu", "Identity", "Clip")
"""What may stand between Flatten and Gemm: it computes value by value."""
PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
PIXEL = (1, 1)
LEAVE_OUT = "leave out --dla-friendly"


def with_dla_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph of fixed sizes, float or lowered, whose pools and classifier are written for DLA.

    Raises:
        PlanError: it has no classifier, or something in it that cannot be written so; names the node.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, known = result.graph, inferred_graphs(result)[0]
    shapes = dict(known.shapes)
    for node in graph.node:
        if node.op_type in POOLS:
            _write_pool(graph, node, shapes.get(node.input[0], ()), known)
    while (gemm := next((node for node in graph.node if node.op_type == "Gemm"), None)) is not None:
        _write_gemm(graph, gemm, known, shapes)
    for node in graph.node:
        if node.op_type in ("Flatten", "Squeeze") and shapes.get(node.input[0], ())[2:] == PIXEL:
            _turn_into_reshape(graph, node, shapes[node.input[0]][:2])
    drop_unused(graph)
    _forget_values(graph, {value.name for value in graph.value_info}.difference(Wiring(graph).makers))
    _check(graph, shapes)
    onnx.checker.check_model(result, full_check=True)
    return result


def _write_pool(
    graph: onnx.GraphProto, node: onnx.NodeProto, shape: Sequence[int | None], known: InferredGraph
) -> None:
    """Turn a global pool into one with a window, in place."""
    if len(shape) != 4 or None in shape:
        raise PlanError(f"--dla-friendly needs fixed sizes, and those before '{node.name}' are not known; {LEAVE_OUT}")
    window = [int(size or 0) for size in shape[2:]]
    if max(window) > LARGEST_WINDOW:
        raise PlanError(
            f"DLA pools {LARGEST_WINDOW}x{LARGEST_WINDOW} pixels at most, and '{node.name}' pools a map of "
            f"{window[0]}x{window[1]}; take a smaller --image-size, or {LEAVE_OUT}"
        )
    node.op_type = POOLS[node.op_type]
    node.attribute.extend([helper.make_attribute("kernel_shape", window), helper.make_attribute("strides", [1, 1])])
    _declare(graph, node.output[0], known.types.get(node.input[0], "FLOAT"), [*shape[:2], *PIXEL])


def _write_gemm(
    graph: onnx.GraphProto, gemm: onnx.NodeProto, known: InferredGraph, shapes: dict[str, tuple[int | None, ...]]
) -> None:
    """Write a Gemm, and the Flatten before it, as a 1x1 convolution and a Reshape, in place."""
    wiring, name, output = Wiring(graph), gemm.name, gemm.output[0]
    values = {**PLAIN_GEMM, "transB": 0, **attributes_of(gemm)}
    bias = wiring.constants.get(gemm.input[2]) if len(gemm.input) > 2 else None
    is_plain = values == PLAIN_GEMM and (len(gemm.input) < 3 or (bias is not None and len(bias.dims) == 1))
    weight = _weight_of(wiring, gemm)
    if not is_plain or weight is None:
        raise PlanError(
            f"--dla-friendly turns a plain product of pooled values with a constant matrix into a convolution, and "
            f"'{name}' is none; {LEAVE_OUT}"
        )
    between, flat = _up_to_flatten(wiring, gemm)
    if flat is None or shapes.get(flat.input[0], ())[2:] != PIXEL:
        raise PlanError(
            f"--dla-friendly needs a classifier that reads one pooled pixel, and '{name}' reads something else; "
            f"{LEAVE_OUT}"
        )
    for node in between:  # they keep height and width now
        shapes[node.output[0]] = (*shapes[node.output[0]], *PIXEL)
    reader = between[-1] if between else gemm
    reader.input[0] = flat.input[0]
    classes = int(weight.dims[0])
    weight.dims.extend(PIXEL)
    rows, map_name = shapes[flat.input[0]][0], f"{output}.map"
    target = add_constant(graph, np.array([rows, classes], np.int64), f"{name}.classes")
    convolution = helper.make_node("Conv", list(gemm.input), [map_name], name=name, kernel_shape=list(PIXEL))
    reshape = helper.make_node("Reshape", [map_name, target], [output], name=f"{name}.reshape")
    _forget_values(graph, {*(one.output[0] for one in between), *gemm.input[1:2]})
    _declare(graph, map_name, known.types.get(output, "FLOAT"), [rows, classes, *PIXEL])
    shapes[map_name] = (rows, classes, *PIXEL)
    nodes = ([convolution, reshape] if node.output[0] == output else [node] for node in graph.node)
    replace_nodes(graph, [one for several in nodes for one in several])


def _up_to_flatten(wiring: Wiring, gemm: onnx.NodeProto) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
    """The nodes between a Gemm and the Flatten before it, from the Gemm on; and the Flatten, or None."""
    between: list[onnx.NodeProto] = []
    tensor = gemm.input[0]
    while (node := wiring.makers.get(tensor)) is not None and wiring.only_user(tensor) is not None:
        if node.op_type not in THROUGH:
            is_flat = node.op_type in ("Flatten", "Reshape", "Squeeze")
            return between, node if is_flat else None
        between.append(node)
        tensor = node.input[0]
    return between, None


def _weight_of(wiring: Wiring, gemm: onnx.NodeProto) -> onnx.TensorProto | None:
    """The constant matrix (outputs, inputs) that this Gemm alone reads, integers behind DequantizeLinear too."""
    name = gemm.input[1]
    maker = wiring.makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear" and wiring.only_user(name) is not None:
        scales = wiring.constants.get(maker.input[1])
        by_row = scales is not None and (not scales.dims or attributes_of(maker).get("axis", 1) in (0, -2))
        name = maker.input[0] if by_row else ""
    found = wiring.constants.get(name)
    return found if found is not None and len(found.dims) == 2 and wiring.only_user(name) is not None else None


def _turn_into_reshape(graph: onnx.GraphProto, node: onnx.NodeProto, shape: Sequence[int | None]) -> None:
    """Turn what flattens one pixel into a Reshape, in place."""
    target = add_constant(graph, np.array(shape, np.int64), f"{node.name or node.output[0]}.shape")
    changed = helper.make_node("Reshape", [node.input[0], target], list(node.output), name=node.name)
    node.CopyFrom(changed)


def _declare(graph: onnx.GraphProto, name: str, type_name: str, shape: Sequence[int | None]) -> None:
    """Say a tensor's type and shape, in place of what was said of it."""
    if any(value.name == name for value in graph.output):
        return
    _forget_values(graph, {name})
    kind = TensorProto.DataType.Value(type_name)
    graph.value_info.append(helper.make_tensor_value_info(name, kind, list(shape)))


def _forget_values(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove what is said of tensors' types and shapes, in place."""
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _check(graph: onnx.GraphProto, shapes: dict[str, tuple[int | None, ...]]) -> None:
    """Refuse a graph in which something is left that DLA does not have, or whose output is no classifier's."""
    for node in graph.node:
        if node.op_type in NOT_ON_DLA:
            raise PlanError(
                f"--dla-friendly writes pools and classifiers for DLA, and '{node.name or node.output[0]}' "
                f"({node.op_type}) is neither, which DLA does not have; {LEAVE_OUT}"
            )
    heads = [node for node in graph.node if node.op_type == "Reshape" and shapes.get(node.input[0], ())[2:] == PIXEL]
    if not heads:
        raise PlanError(f"--dla-friendly is about the classifier's head, and this network has none; {LEAVE_OUT}")
