"""Facts about an ONNX graph: shapes, types, parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from runtimes.manifest import GraphFacts
from runtimes.specs import TensorSpec

Shape = tuple[int | None, ...]

CONVOLUTIONS = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv")
"""ONNX's, and those that ONNX Runtime makes of them."""
# fmt: off
COUNTED_PARAMETERS = (
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4",
    "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1",
)
# fmt: on
PREPROCESSING = "pixels."
"""How the nodes' names begin that make a network's input out of pixels (`exporter.graph.pillow_resize`): not the
network's work."""
WEIGHT_PLACES = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3)}
"""Which inputs are multiplied, where it is not the first two."""
UNCOUNTED = (
    "FusedConv",
    "NhwcConv",
    "NhwcFusedConv",
    "FusedMatMul",
    "FusedGemm",
    "QGemm",
    "Einsum",
    "Attention",
    "LSTM",
    "GRU",
    "RNN",
    "DeformConv",
)
"""Operators that multiply in ways that are not counted here: what they do is unknown, not nothing."""
MULTIPLIES = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
LOADED_ELEMENTS = 1024
"""Constants of more elements than these hold no shape."""


@dataclass(frozen=True)
class Scope:
    """A graph and what is known of its tensors: the model's own graph, or one inside of an If, a Loop or a Scan.

    Attributes:
        graph: as it stands in the model.
        node: the node that it stands in, as `(place of its scope, its place in that graph)`; None for the model's own.
        name: the attribute that holds it, `then_branch`; empty for the model's own.
        types: tensor -> the name of its ONNX type, of those known here, the outer graphs' too.
        shapes: tensor -> its sizes for `images` images; None for one that is free.
        constants: the tensors whose values do not depend on the model's inputs, the outer graphs' too.
        images: the batch that `shapes` is of: the model's own where it is fixed, else one.
    """

    graph: onnx.GraphProto
    node: tuple[int, int] | None
    name: str
    types: Mapping[str, str]
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    images: int


def initializer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every initializer, by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def graph_facts(model: onnx.ModelProto) -> GraphFacts:
    """Nodes, parameters, multiply-accumulates for one image, operators, and each operator's input types.

    Local functions count as what they are made of, the graphs inside of an If, a Loop or a Scan count too. Parameters
    are counted wherever they stand: in initializers and in Constant nodes. What a Loop repeats, what an If chooses and
    what free sizes make is not known: then neither are the multiply-accumulates.
    """
    found = scopes(inlined(model))
    counted: dict[str, Counter[str]] = {}
    for scope in found:
        for node in scope.graph.node:
            counted.setdefault(node.op_type, Counter())[
                scope.types.get(node.input[0], "?") if node.input else "none"
            ] += 1
    tensors = [tensor for scope in found for tensor in (*scope.graph.initializer, *_held(scope.graph))]
    macs = _work(found, 0)
    return GraphFacts(
        nodes=sum(len(scope.graph.node) for scope in found),
        parameters=sum(
            math.prod(tensor.dims) for tensor in tensors if type_name(tensor.data_type) in COUNTED_PARAMETERS
        ),
        macs=None if macs is None or macs % found[0].images else macs // found[0].images,
        operators={operator: sum(counted[operator].values()) for operator in sorted(counted)},
        types={operator: dict(sorted(counted[operator].items())) for operator in sorted(counted)},
    )


def tensor_specs(values: object) -> tuple[TensorSpec, ...]:
    """A graph's inputs or outputs as specifications."""
    specs = []
    for value in values:  # type: ignore[attr-defined]  # protobuf's containers have no public type
        tensor = value.type.tensor_type
        shape = tuple(dimension.dim_param or int(dimension.dim_value) for dimension in tensor.shape.dim)
        specs.append(TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape))
    return tuple(specs)


def type_name(elem_type: int) -> str:
    """FLOAT for 1, and so on; `?` for what this onnx does not know."""
    return str(TensorProto.DataType.Name(elem_type)) if elem_type in TensorProto.DataType.values() else "?"


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions replaced by what they are made of; itself where it has none."""
    if not model.functions:
        return model
    from onnx import inliner  # a compiled module that few models need

    return inliner.inline_local_functions(model)


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs inside of a node, each with the attribute that holds it."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def constant_names(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> frozenset[str]:
    """The tensors whose values do not depend on the model's inputs: initializers, Constant nodes, and what is computed
    of those alone."""
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


def scopes(model: onnx.ModelProto) -> tuple[Scope, ...]:
    """The model's own graph, and behind it every graph inside of a node, outer ones before inner ones."""
    images, batch = _batch(model.graph)
    found: list[Scope] = []

    def add(graph: onnx.GraphProto, within: tuple[int, int] | None, name: str, outer: Scope | None) -> None:
        constants = constant_names(graph, outer.constants if outer else frozenset())
        types, shapes = _types_and_shapes(model, graph, outer, batch)
        scope = Scope(graph, within, name, types, shapes, constants, images)
        found.append(scope)
        place = len(found) - 1
        for number, node in enumerate(graph.node):
            for attribute, inner in subgraphs(node):
                add(inner, (place, number), attribute, scope)

    add(model.graph, None, "", None)
    return tuple(found)


def multiply_accumulates(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates of the shapes' batch; zero for all but convolutions and matrix products, None where a size
    is not known."""
    if node.op_type in UNCOUNTED:
        return None
    if node.op_type not in MULTIPLIES or node.name.startswith(PREPROCESSING):
        return 0
    first, second = WEIGHT_PLACES.get(node.op_type, (0, 1))
    source, weight, output = (shapes.get(name) for name in (node.input[first], node.input[second], node.output[0]))
    if not source or not weight or not output:
        return None
    if node.op_type == "ConvTranspose":
        return _product([*source, *weight[1:]])
    if "Conv" in node.op_type:
        return _product([*output, *weight[1:]])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return _product([*output, source[0 if transposed else -1]])


def _product(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _work(found: Sequence[Scope], place: int) -> int | None:
    """Multiply-accumulates of a scope and of those inside it."""
    scope, total = found[place], 0
    for number, node in enumerate(scope.graph.node):
        inner = [_work(found, other) for other, one in enumerate(found) if one.node == (place, number)]
        # An If does the one or the other; how often a Loop or a Scan runs its body is not known.
        chosen: int | None = 0
        if inner:
            chosen = inner[0] if len(set(inner)) == 1 and (node.op_type == "If" or inner[0] == 0) else None
        own = multiply_accumulates(node, scope.shapes)
        if own is None or chosen is None:
            return None
        total += own + chosen
    return total


def _held(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The tensors in the Constant nodes of a graph."""
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _batch(graph: onnx.GraphProto) -> tuple[int, str | None]:
    """How many images go in, and what the free dimension of that is called, `` where it has no name; None where it is
    fixed."""
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dimensions) > 1:
            return max(1, dimensions[0].dim_value), None if dimensions[0].dim_value > 0 else dimensions[0].dim_param
    return 1, None


def _types_and_shapes(
    model: onnx.ModelProto, graph: onnx.GraphProto, outer: Scope | None, batch: str | None
) -> tuple[dict[str, str], dict[str, Shape]]:
    """Of every tensor that a graph sees, for one image where the batch is free."""
    lean = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    lean.graph.name = graph.name or "graph"
    lean.graph.node.extend(graph.node)
    given = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        # Shapes are inferred from small constants' values, and from large ones' sizes.
        is_small = math.prod(tensor.dims) <= LOADED_ELEMENTS and tensor.data_location != TensorProto.EXTERNAL
        lean.graph.initializer.append(
            tensor if is_small else TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        )
    for kind in ("input", "output", "value_info"):
        for value in getattr(graph, kind):
            getattr(lean.graph, kind).append(
                _of_one_image(value, batch if kind != "input" or not outer else None, first=kind == "input")
            )
    types: dict[str, str] = dict(outer.types) if outer else {}
    shapes: dict[str, Shape] = dict(outer.shapes) if outer else {}
    if outer is not None:
        lean.graph.input.extend(_captured(graph, outer, given))
    try:
        inferred = onnx.shape_inference.infer_shapes(lean, data_prop=True).graph
    except (
        onnx.shape_inference.InferenceError
    ):  # an operator of a domain that the file does not import: what follows from it is not known
        inferred = lean.graph
    for tensor in graph.initializer:
        types[tensor.name], shapes[tensor.name] = type_name(tensor.data_type), tuple(tensor.dims)
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        held = value.type.tensor_type
        types[value.name] = type_name(held.elem_type)
        if held.HasField("shape"):
            shapes[value.name] = tuple(
                int(size.dim_value) if size.HasField("dim_value") else None for size in held.shape.dim
            )
    return types, shapes


def _of_one_image(value: onnx.ValueInfoProto, batch: str | None, *, first: bool) -> onnx.ValueInfoProto:
    """With the batch's dimension set to one wherever its name stands; where it has none, in front of every input."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    dimensions = result.type.tensor_type.shape.dim
    for place, dimension in enumerate(dimensions):
        is_free = not dimension.HasField("dim_value") or dimension.dim_value <= 0
        if (
            is_free
            and batch is not None
            and (dimension.dim_param == batch if batch else first and place == 0 and not dimension.dim_param)
        ):
            dimension.dim_value = 1
        elif is_free and not dimension.dim_param:
            dimension.ClearField("dim_value")
    return result


def _captured(graph: onnx.GraphProto, outer: Scope, given: set[str]) -> list[onnx.ValueInfoProto]:
    """What an inner graph reads of the outer one, as inputs of its own."""
    own = given.union(value.name for value in graph.input).union(name for node in graph.node for name in node.output)
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
