"""Retype an FP32 graph to a narrower float, with one Cast after each input and one before each output."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import LowerError

FLOAT = TensorProto.FLOAT


def cast_graph(model: onnx.ModelProto, elem_type: int) -> onnx.ModelProto:
    """A copy of `model` whose float tensors all have `elem_type`, but for its inputs and outputs.

    The result is sorted because the casts stand first and last; stale shapes are dropped and inferred anew.

    Raises:
        LowerError: a constant is beyond the type's range; names it.
    """
    fixed = _fixed_inputs(model)
    weights = [
        _cast_tensor(tensor, tensor.name, elem_type) if tensor.data_type == FLOAT and tensor.name not in fixed else tensor
        for tensor in model.graph.initializer
    ]
    graph = helper.make_graph(model.graph.node, model.graph.name, model.graph.input, model.graph.output, weights)
    for node in graph.node:
        _cast_attributes(node, elem_type)
    suffix = TensorProto.DataType.Name(elem_type).lower()
    first = [
        _cast_input(graph, value.name, f"{value.name}.{suffix}", elem_type) for value in graph.input if value.type.tensor_type.elem_type == FLOAT
    ]
    last = [_cast_output(graph, value.name, f"{value.name}.{suffix}") for value in graph.output if value.type.tensor_type.elem_type == FLOAT]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    result = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name)
    inferred = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred


def rounded(model: onnx.ModelProto, elem_type: int) -> onnx.ModelProto:
    """A graph that computes in FP32 and rounds every tensor to `elem_type`, as a device does that computes in it.

    ONNX Runtime has no FP16 kernels for x86 CPUs: it casts each node's inputs to FP32 and drops the casts between nodes, so that only weights
    are rounded, and a value beyond the range passes unseen (measured: a ResNet-20's error is 2.7e-4 that way and 2.1e-3 when every tensor
    is rounded, as PyTorch's half precision does to the same digits). Casts that the graph itself asks for are kept.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = [tensor.name for tensor in graph.initializer if tensor.data_type == elem_type]
    narrow = {*constants, *(value.name for value in graph.value_info if value.type.tensor_type.elem_type == elem_type)}

    def widened(name: str) -> onnx.NodeProto:
        return helper.make_node("Cast", [name], [f"{name}.wide"], to=FLOAT)

    nodes = [widened(name) for name in constants]
    for original in graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        rounds = [name for name in node.output if name in narrow]
        if node.op_type == "Cast":
            nodes.append(node)
        else:
            node.input[:] = [f"{name}.wide" if name in narrow else name for name in node.input]
            node.output[:] = [f"{name}.exact" if name in narrow else name for name in node.output]
            nodes += [node, *(helper.make_node("Cast", [f"{name}.exact"], [name], to=elem_type) for name in rounds)]
        nodes += [widened(name) for name in rounds]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result


def wider_precisions(elem_type: int) -> str:
    """What to export in where a value is beyond a type's range, in words: BF16's is FP32's."""
    return "fp32" if elem_type == TensorProto.BFLOAT16 else "bf16 or fp32"


def _fixed_inputs(model: onnx.ModelProto) -> set[str]:
    """Names fed where the operator takes FP32 alone, as Resize does for its scales."""
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    names = set()
    for node in model.graph.node:
        for value, formal in zip(node.input, onnx.defs.get_schema(node.op_type, version).inputs, strict=False):
            if formal.type_str == "tensor(float)":
                names.add(value)
    return names


def _cast_tensor(tensor: TensorProto, name: str, elem_type: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(narrow.astype(np.float32))
    if lost.any():
        worst = np.abs(values[lost]).max()
        raise LowerError(
            f"'{name}' holds {worst:.3g}, beyond the range of {dtype.name}; export in {wider_precisions(elem_type)}, "
            "or scale the layer down before training goes on"
        )
    return numpy_helper.from_array(narrow, name)


def _cast_attributes(node: onnx.NodeProto, elem_type: int) -> None:
    """Constants and casts inside the graph speak of FP32 in their attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(_cast_tensor(attribute.t, node.name, elem_type))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = elem_type


def _cast_input(graph: onnx.GraphProto, name: str, inner: str, elem_type: int) -> onnx.NodeProto:
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value == name:
                node.input[place] = inner
    return helper.make_node("Cast", [name], [inner], name=f"{name}.cast", to=elem_type)


def _cast_output(graph: onnx.GraphProto, name: str, inner: str) -> onnx.NodeProto:
    for node in graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                if value == name:
                    values[place] = inner
    return helper.make_node("Cast", [inner], [name], name=f"{name}.cast", to=FLOAT)
