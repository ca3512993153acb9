"""Facts about an ONNX graph: shapes, types, parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from runtimes.manifest import GraphFacts
from runtimes.specs import TensorSpec

COUNTED_PARAMETERS = ("FLOAT", "FLOAT16", "BFLOAT16", "INT8")


def initializer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every initializer, by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def graph_facts(model: onnx.ModelProto) -> GraphFacts:
    """Nodes, parameters, multiply-accumulates for one image, operators, and each operator's input types."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    types, shapes = types_and_shapes(inferred)
    counted: dict[str, Counter[str]] = {}
    for node in inferred.graph.node:
        counted.setdefault(node.op_type, Counter())[types.get(node.input[0], "?") if node.input else "none"] += 1
    parameters = sum(math.prod(tensor.dims) for tensor in inferred.graph.initializer if _type_name(tensor.data_type) in COUNTED_PARAMETERS)
    return GraphFacts(
        nodes=len(inferred.graph.node),
        parameters=parameters,
        macs=sum(multiply_accumulates(node, shapes) for node in inferred.graph.node),
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


def _type_name(elem_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem_type))


def types_and_shapes(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Of every tensor; a free dimension counts as one."""
    types = {tensor.name: _type_name(tensor.data_type) for tensor in model.graph.initializer}
    shapes = initializer_shapes(model)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = _type_name(tensor.elem_type)
        shapes[value.name] = tuple(1 if dimension.dim_param else int(dimension.dim_value) for dimension in tensor.shape.dim)
    return types, shapes


def multiply_accumulates(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates for one image; zero for all but convolutions and matrix products."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.output[0] not in shapes or node.input[1] not in shapes:
        return 0
    output, weight = shapes[node.output[0]], shapes[node.input[1]]
    if node.op_type == "Conv":
        return math.prod(output[1:]) * math.prod(weight[1:])
    return math.prod(weight)
