"""Infer the type and shape of every tensor, in the model's own graph and in those inside an If, a Loop or a Scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import onnx
from onnx import TensorProto

from exporter.graph.facts import constant_names, subgraphs, type_name

Shape = tuple[int | None, ...]
"""A tensor's sizes; None for one that is free."""
LARGEST_SHAPE_CONSTANT = 1024
"""In elements: constants that are larger hold no shape, so that shape inference does without their values."""


class NodePlace(NamedTuple):
    """Where a node stands: its graph's index in what `inferred_graphs` returns, and its own index in that graph."""

    graph: int
    node: int


@dataclass(frozen=True)
class InferredGraph:
    """A graph and what is known of its tensors: the model's own graph, or one inside a node.

    Attributes:
        graph: the graph as it stands in the model.
        owner: the If, Loop or Scan that holds it; None for the model's own graph.
        attribute: the owner's attribute that holds it, such as `then_branch`; empty for the model's own graph.
        types: tensor -> the name of its ONNX type, such as `FLOAT`; tensors of the graphs around it included.
        shapes: tensor -> its sizes for a batch of `images`; tensors of the graphs around it included.
        constants: the tensors whose values do not depend on the model's inputs; those of the graphs around it included.
        images: the batch size that `shapes` is for: the model's own if it is fixed, else 1.
    """

    graph: onnx.GraphProto
    owner: NodePlace | None
    attribute: str
    types: Mapping[str, str]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    images: int


def inferred_graphs(model: onnx.ModelProto) -> tuple[InferredGraph, ...]:
    """The model's own graph, followed by every graph inside a node, outer ones before inner ones."""
    batch = _batch(model.graph)
    found: list[InferredGraph] = []

    def add(graph: onnx.GraphProto, owner: NodePlace | None, attribute: str, outer: InferredGraph | None) -> None:
        constants = constant_names(graph, outer.constants if outer else frozenset())
        types, shapes = _types_and_shapes(model, graph, outer, batch.symbol)
        inferred = InferredGraph(graph, owner, attribute, types, shapes, constants, batch.images)
        found.append(inferred)
        place = len(found) - 1
        for number, node in enumerate(graph.node):
            for name, inner in subgraphs(node):
                add(inner, NodePlace(place, number), name, inferred)

    add(model.graph, None, "", None)
    return tuple(found)


def inferred_values(model: onnx.ModelProto) -> onnx.GraphProto:
    """The model's own graph with the types and shapes of its inner tensors and outputs, as far as they can be inferred,
    and without the values of its weights: onnx's own inference would copy these several times."""
    return onnx.shape_inference.infer_shapes(_lean_model(model, model.graph, None, None), data_prop=True).graph


class _Batch(NamedTuple):
    """The first dimension of a model's input.

    Attributes:
        images: its size; 1 if it is free.
        symbol: its name if it is free, empty if it has none; None if it is fixed.
    """

    images: int
    symbol: str | None


def _batch(graph: onnx.GraphProto) -> _Batch:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dimensions) > 1:
            size = dimensions[0].dim_value
            return _Batch(max(1, size), None if size > 0 else dimensions[0].dim_param)
    return _Batch(1, None)


def _types_and_shapes(
    model: onnx.ModelProto, graph: onnx.GraphProto, outer: InferredGraph | None, batch: str | None
) -> tuple[dict[str, str], dict[str, Shape]]:
    """The types and the shapes of every tensor that a graph sees; for one image where the batch is free."""
    types: dict[str, str] = dict(outer.types) if outer else {}
    shapes: dict[str, Shape] = dict(outer.shapes) if outer else {}
    lean = _lean_model(model, graph, outer, batch)
    try:
        inferred = onnx.shape_inference.infer_shapes(lean, data_prop=True).graph
    except Exception:  # InferenceError, and the ValueErrors of what it does not look at itself
        # An operator of a domain that the file does not import, say: what follows from it stays unknown.
        inferred = lean.graph
    for tensor in graph.initializer:
        types[tensor.name], shapes[tensor.name] = type_name(tensor.data_type), tuple(tensor.dims)
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor_type = value.type.tensor_type
        types[value.name] = type_name(tensor_type.elem_type)
        if tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                int(size.dim_value) if size.HasField("dim_value") else None for size in tensor_type.shape.dim
            )
    return types, shapes


def _lean_model(
    model: onnx.ModelProto, graph: onnx.GraphProto, outer: InferredGraph | None, batch: str | None
) -> onnx.ModelProto:
    """A model of this graph alone, without the values of its weights, for shape inference."""
    lean = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    lean.graph.name = graph.name or "graph"
    lean.graph.node.extend(graph.node)
    for tensor in graph.initializer:
        # Shapes are inferred from small constants' values, and from large ones' sizes.
        is_small = math.prod(tensor.dims) <= LARGEST_SHAPE_CONSTANT and tensor.data_location != TensorProto.EXTERNAL
        lean.graph.initializer.append(
            tensor if is_small else TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        )
    for kind in ("input", "output", "value_info"):
        for value in getattr(graph, kind):
            symbol = batch if kind != "input" or not outer else None
            getattr(lean.graph, kind).append(_with_batch_of_one(value, symbol, is_input=kind == "input"))
    if outer is not None:
        lean.graph.input.extend(_outer_inputs(graph, outer))
    return lean


def _with_batch_of_one(value: onnx.ValueInfoProto, batch: str | None, *, is_input: bool) -> onnx.ValueInfoProto:
    """A copy with every dimension of the batch's name set to 1; if that name is empty, the first one of an input."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    dimensions = result.type.tensor_type.shape.dim
    for place, dimension in enumerate(dimensions):
        is_free = not dimension.HasField("dim_value") or dimension.dim_value <= 0
        if (
            is_free
            and batch is not None
            and (dimension.dim_param == batch if batch else is_input and place == 0 and not dimension.dim_param)
        ):
            dimension.dim_value = 1
        elif is_free and not dimension.dim_param:
            dimension.ClearField("dim_value")
    return result


def _outer_inputs(graph: onnx.GraphProto, outer: InferredGraph) -> list[onnx.ValueInfoProto]:
    """What an inner graph reads of the graph around it, as inputs of its own."""
    own = {
        *(tensor.name for tensor in graph.initializer),
        *(value.name for value in graph.input),
        *(name for node in graph.node for name in node.output),
    }
    read = dict.fromkeys(
        name
        for node in graph.node
        for name in node.input
        if name and name not in own and outer.types.get(name, "?") != "?"
    )
    return [
        onnx.helper.make_tensor_value_info(name, TensorProto.DataType.Value(outer.types[name]), outer.shapes.get(name))
        for name in read
    ]
