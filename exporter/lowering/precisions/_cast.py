"""Cast an FP32 graph to a narrower float type, and make graphs for the CPU that round as that type does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.lowering.precisions._keep import FLOAT, Typing, nodes_in_fp32
from runtimes.errors import LowerError


def cast_graph(model: onnx.ModelProto, elem_type: int) -> onnx.ModelProto:
    """A copy of `model` whose float tensors have type `elem_type`, with a Cast after each input and before each output.

    Nodes that have no form in the type, or would lose a constant in it, stay in FP32 between casts (see
    `exporter.lowering.precisions._keep`). A tensor has the type of the node that makes it, and keeps its name; its copy
    in the other type is NAME.float16, NAME.bfloat16 or NAME.float. Shapes are inferred again.

    Raises:
        LowerError: a constant is beyond the type's range, or a node cannot be lowered; names it.
    """
    typing = Typing(model)
    kept = nodes_in_fp32(model.graph, typing, elem_type)
    retyped = _Retyped(model.graph, typing, kept, elem_type)
    graph = helper.make_graph(
        retyped.sorted_nodes(), model.graph.name, model.graph.input, model.graph.output, retyped.constants()
    )
    result = helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        said = " ".join(str(error).split())
        raise LowerError(f"the graph cannot be lowered to {_dtype(elem_type).name}: {said}; export in fp32") from error
    return inferred


class _Retyped:
    """The nodes of a graph in their new types, and the casts between nodes of different types."""

    def __init__(self, graph: onnx.GraphProto, typing: Typing, kept: Collection[int], elem_type: int) -> None:
        self.graph, self.typing, self.elem_type = graph, typing, elem_type
        self.suffix = TensorProto.DataType.Name(elem_type).lower()
        self.weights = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
        self.outputs = {value.name for value in graph.output} & typing.floats
        self.wide = {value.name for value in graph.input}  # the tensors in FP32
        self.casts: dict[str, list[onnx.NodeProto]] = {}  # by the tensor that they cast
        self.read: dict[bool, set[str]] = {True: set(), False: set()}  # the constants, by whether read in FP32
        for place, node in enumerate(graph.node):
            self.wide.update(name for name, kind in typing.outputs(node) if place in kept or typing.is_fixed(kind))
        for place, node in enumerate(graph.node):
            for name, kind in typing.inputs(node):
                if name in self.weights:
                    self.read[place in kept or typing.is_fixed(kind)].add(name)
        self.nodes = [self._retype(node, is_kept=place in kept) for place, node in enumerate(graph.node)]

    def sorted_nodes(self) -> list[onnx.NodeProto]:
        """The nodes in topological order: each cast follows what it casts; those to the graph's outputs come last."""
        nodes = [cast for value in self.graph.input for cast in self.casts.get(value.name, ())]
        for original, node in zip(self.graph.node, self.nodes, strict=True):
            nodes += [node, *(cast for name in original.output for cast in self.casts.get(name, ()))]
        last = [value.name for value in self.graph.output if value.name in self.outputs - self.wide]
        return [
            *nodes,
            *(
                helper.make_node("Cast", [self._narrow_name(name)], [name], name=f"{name}.cast", to=FLOAT)
                for name in last
            ),
        ]

    def constants(self) -> list[TensorProto]:
        """The initializers in their new types; one that nodes of both types read is there twice."""
        tensors = []
        for tensor in self.graph.initializer:
            is_wide = tensor.name in self.read[True]
            if tensor.name not in self.weights or (is_wide and tensor.name not in self.read[False]):
                tensors.append(tensor)
                continue
            tensors.append(_cast_tensor(tensor, tensor.name, self.elem_type))
            if is_wide:
                tensors.append(numpy_helper.from_array(numpy_helper.to_array(tensor), f"{tensor.name}.float"))
        return tensors

    def _retype(self, original: onnx.NodeProto, *, is_kept: bool) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if not is_kept:
            _cast_attributes(node, self.elem_type)
        for place, (name, kind) in enumerate(self.typing.inputs(original)):
            if name in self.typing.floats:
                node.input[place] = self._name_as_read(name, is_wide=is_kept or self.typing.is_fixed(kind))
        node.output[:] = [self._narrow_name(name) for name in original.output]
        return node

    def _narrow_name(self, name: str) -> str:
        """The name of a tensor as its node writes it: an output of the graph has another one before its last cast."""
        return f"{name}.{self.suffix}" if name in self.outputs - self.wide else name

    def _name_as_read(self, name: str, *, is_wide: bool) -> str:
        """The name of a tensor in the type that a node reads; adds a cast if the tensor has the other type."""
        if name in self.weights:
            return f"{name}.float" if is_wide and name in self.read[False] else name
        if is_wide == (name in self.wide):
            return self._narrow_name(name)
        result = f"{name}.{'float' if is_wide else self.suffix}"
        if name not in self.casts:
            # A cast of a graph's input is named after the input, as the cast to an output is after the output.
            label = name if name in {value.name for value in self.graph.input} else result
            kind = FLOAT if is_wide else self.elem_type
            self.casts[name] = [
                helper.make_node("Cast", [self._narrow_name(name)], [result], name=f"{label}.cast", to=kind)
            ]
        return result


def with_rounding(model: onnx.ModelProto, elem_type: int) -> onnx.ModelProto:
    """A graph that computes in FP32 and rounds every tensor to `elem_type`, as a device computing in that type does.

    ONNX Runtime has no FP16 kernels for x86 CPUs: it casts each node's inputs to FP32 and drops the casts between
    nodes, so that only weights are rounded, and a value beyond the range goes unnoticed (measured: a ResNet-20's error
    is 2.7e-4 that way, and 2.1e-3 when every tensor is rounded, which PyTorch's half precision confirms to the same
    digits). The graph's own casts are kept.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = [tensor.name for tensor in graph.initializer if tensor.data_type == elem_type]
    narrow = {*constants, *(value.name for value in graph.value_info if value.type.tensor_type.elem_type == elem_type)}

    def cast_to_float(name: str) -> onnx.NodeProto:
        return helper.make_node("Cast", [name], [f"{name}.wide"], to=FLOAT)

    nodes = [cast_to_float(name) for name in constants]
    for original in graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        rounds = [name for name in node.output if name in narrow]
        if node.op_type == "Cast":
            nodes.append(node)
        else:
            node.input[:] = [f"{name}.wide" if name in narrow else name for name in node.input]
            node.output[:] = [f"{name}.exact" if name in narrow else name for name in node.output]
            nodes += [node, *(helper.make_node("Cast", [f"{name}.exact"], [name], to=elem_type) for name in rounds)]
        nodes += [cast_to_float(name) for name in rounds]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result


def wider_precisions(elem_type: int) -> str:
    """The precisions, as text, whose range is wider than that of `elem_type`; BF16's range is FP32's."""
    return "fp32" if elem_type == TensorProto.BFLOAT16 else "bf16 or fp32"


def _dtype(elem_type: int) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(elem_type)


def _cast_tensor(tensor: TensorProto, name: str, elem_type: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    dtype = _dtype(elem_type)
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(narrow.astype(np.float32))
    if lost.any():
        worst = np.abs(values[lost]).max()
        raise LowerError(
            f"'{name}' holds {worst:.3g}, beyond the range of {dtype.name}; "
            f"export in {wider_precisions(elem_type)}, or scale the layer down before training goes on"
        )
    return numpy_helper.from_array(narrow, name)


def _cast_attributes(node: onnx.NodeProto, elem_type: int) -> None:
    """Change FP32 to `elem_type` in the attributes of a constant or a cast."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(_cast_tensor(attribute.t, node.name, elem_type))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = elem_type
