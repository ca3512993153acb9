"""Give a traced graph the names and operators people know.

torch.onnx names nodes `node_Conv_293`, tensors `getitem_6` and the batch `s77`, writes the machine's paths into each node's metadata, and
pools with ReduceMean and Reshape. Here nodes are called after their module (`layer1.0.conv1`), tensors after the node that makes them
(`layer1.0.conv1.out`), weights after the node that takes them (`layer1.0.conv1.weight`), and global pooling is GlobalAveragePool and Flatten.
"""

from __future__ import annotations

import ast
from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
PARAMETERS = {"Conv": ("", "weight", "bias"), "Gemm": ("", "weight", "bias"), "MatMul": ("", "weight")}


def make_readable(model: onnx.ModelProto) -> None:
    """Give a traced model readable names and known pooling operators, and take its metadata away; in place."""
    _use_known_pooling(model.graph)
    _use_known_classifier(model.graph)
    _name_nodes(model.graph)
    _name_tensors(model.graph)
    _strip_metadata(model)


def _use_known_pooling(graph: onnx.GraphProto) -> None:
    """ReduceMean over both spatial axes, and the Reshape to rank two behind it, as GlobalAveragePool and Flatten."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}
    pooled: set[str] = set()
    for node in graph.node:
        constant = constants.get(node.input[1]) if len(node.input) == 2 else None
        if constant is None or node.op_type not in ("ReduceMean", "Reshape"):
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        values = numpy_helper.to_array(constant).tolist()
        if node.op_type == "ReduceMean" and attributes.get("keepdims", 1) == 1 and ranks.get(node.input[0]) == 4:
            if sorted(axis % 4 for axis in values) == [2, 3]:
                _become(node, "GlobalAveragePool")
                pooled.add(node.output[0])
        elif node.op_type == "Reshape" and node.input[0] in pooled and len(values) == 2 and values[0] in (-1, 0):
            _become(node, "Flatten", axis=1)
    used = {name for node in graph.node for name in node.input}
    _keep(graph.initializer, used)


def _use_known_classifier(graph: onnx.GraphProto) -> None:
    """A 1x1 convolution of what is globally pooled, flattened behind it, as Flatten and Gemm: timm has heads of that kind."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    pooled = {node.output[0] for node in graph.node if node.op_type == "GlobalAveragePool"}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[0] not in pooled or node.input[1] not in constants:
            continue
        weight, behind = constants[node.input[1]], users.get(node.output[0], [])
        if tuple(weight.dims[2:]) == (1, 1) and len(behind) == 1 and behind[0].op_type in ("Reshape", "Flatten") and behind[0].output[0] in outputs:
            if len(node.input) < 3:  # torch leaves a bias of zeros out
                node.input.append(f"{weight.name.removesuffix('weight')}bias")
                graph.initializer.append(numpy_helper.from_array(np.zeros(weight.dims[0], np.float32), node.input[2]))
            del weight.dims[2:]
            _swap(node, behind[0])
    _keep(graph.initializer, {name for node in graph.node for name in node.input})


def _swap(convolution: onnx.NodeProto, flatten: onnx.NodeProto) -> None:
    """Convolution and Flatten become Flatten and Gemm, each with the other's metadata."""
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(helper.make_node("Flatten", [convolution.input[0]], [convolution.output[0]], axis=1))
    second.CopyFrom(helper.make_node("Gemm", [convolution.output[0], *convolution.input[1:]], [flatten.output[0]], transB=1))
    first.metadata_props.extend(flatten.metadata_props)
    second.metadata_props.extend(convolution.metadata_props)
    convolution.CopyFrom(first)
    flatten.CopyFrom(second)


def _become(node: onnx.NodeProto, operator: str, **attributes: int) -> None:
    """Turn a node with one data input and one constant into another operator with the data input alone."""
    node.op_type = operator
    del node.input[1:]
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())


def _keep(tensors: object, used: set[str]) -> None:
    kept = [tensor for tensor in tensors if tensor.name in used]  # type: ignore[attr-defined]  # protobuf's containers have no public type
    del tensors[:]  # type: ignore[attr-defined]  # as above
    tensors.extend(kept)  # type: ignore[attr-defined]  # as above


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: Counter[str] = Counter()
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        name = _module_name(node, constants)
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"


def _module_name(node: onnx.NodeProto, constants: set[str]) -> str:
    """The module a node stands for; for a function called between modules, the module around it and the operator."""
    if node.op_type in PARAMETERS and len(node.input) > 1 and node.input[1] in constants and node.input[1].endswith(".weight"):
        return str(node.input[1]).removesuffix(".weight")  # a convolution that took in its batch norm carries the latter's scopes
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    operator = node.op_type.lower()
    try:
        scope, kind = (ast.literal_eval(metadata[key])[-2] for key in (SCOPES, CLASSES))
    except (KeyError, ValueError, SyntaxError, IndexError):
        return operator
    is_leaf = kind.startswith("torch.nn.modules.") and ".container." not in kind
    if is_leaf and scope and node.op_type != "Flatten":
        return str(scope)
    return f"{scope}.{operator}" if scope else operator


def _name_tensors(graph: onnx.GraphProto) -> None:
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for place, output in enumerate(node.output):
            if output:
                names.setdefault(output, f"{node.name}.out" if len(node.output) == 1 else f"{node.name}.out{place}")
        for place, value in enumerate(node.input):
            if value in constants:
                names.setdefault(value, f"{node.name}.{_formal_name(node.op_type, place)}")
    for node in graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                values[place] = names.get(value, value)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _formal_name(operator: str, place: int) -> str:
    """What an operator calls its input at that place; of several under one name, as Concat has, each with its place."""
    if operator in PARAMETERS:
        return PARAMETERS[operator][place]
    inputs = onnx.defs.get_schema(operator).inputs
    formal = inputs[min(place, len(inputs) - 1)]
    return f"{formal.name}{place}" if formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic else str(formal.name)


def _strip_metadata(model: onnx.ModelProto) -> None:
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]
    graph.name = "resnet"
    model.doc_string = ""
