"""Read an ONNX graph: its tensors' specifications, its constants, and the graphs inside its nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
from onnx import TensorProto, numpy_helper

from runtimes.specs import TensorSpec

CONVOLUTIONS = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv")
"""ONNX's convolutions, and those that ONNX Runtime makes of them."""


def initializer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every initializer of the model's own graph, by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """The specifications of a graph's inputs or outputs; a free dimension is given by its name."""
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dimension.dim_param or int(dimension.dim_value) for dimension in tensor.shape.dim)
        specs.append(TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape))
    return tuple(specs)


def type_name(elem_type: int) -> str:
    """ONNX's name of an element type, `FLOAT` for 1; `?` for a number that this version of onnx does not know."""
    return str(TensorProto.DataType.Name(elem_type)) if elem_type in TensorProto.DataType.values() else "?"


def keep_initializers(graph: onnx.GraphProto, used: Collection[str]) -> None:
    """Remove the initializers whose names are not in `used`, in place; the others stay where they are: protobuf would
    keep both a copy and the original."""
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in used:
            del graph.initializer[place]


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every call of a local function replaced by the function's nodes; the model itself if it has none."""
    if not model.functions:
        return model
    from onnx import inliner  # a compiled module that few models need

    return inliner.inline_local_functions(model)


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs inside an If, a Loop or a Scan, each after the name of the attribute that holds it."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def constant_names(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> frozenset[str]:
    """The tensors whose values do not depend on the model's inputs.

    They are initializers, Constant nodes, and what is computed from those alone; `outer` are those of the graphs around
    this one.
    """
    names = {
        *outer,
        *(tensor.name for tensor in graph.initializer),
        *(tensor.values.name for tensor in graph.sparse_initializer),
    }
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (inputs and names.issuperset(inputs) and not any(subgraphs(node))):
            names.update(name for name in node.output if name)
    return frozenset(names)


def reduces_space(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a Reduce operator over the last two of four axes: height and width.

    Args:
        constants: the graph's constant tensors by name. The axes are one of them, or, in old opsets, an attribute.
    """
    if not node.op_type.startswith("Reduce"):
        return False
    axes = [int(axis) for attribute in node.attribute if attribute.name == "axes" for axis in attribute.ints]
    if len(node.input) == 2 and node.input[1] in constants:
        axes = [int(axis) for axis in numpy_helper.to_array(constants[node.input[1]]).ravel()]
    return sorted(axis % 4 for axis in axes) == [2, 3]
