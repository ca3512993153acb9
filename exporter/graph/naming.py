"""Give a traced graph the names and operators people know.

torch.onnx names nodes `node_Conv_293`, tensors `getitem_6` and the batch `s77`, writes the machine's paths into each
node's metadata, and pools with ReduceMean and Reshape. Here a node is named after its module (`layer1.0.conv1`), a
tensor after the node that makes it (`layer1.0.conv1.out`), a weight after the node that reads it
(`layer1.0.conv1.weight`), and global pooling is GlobalAveragePool and Flatten.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from itertools import chain, count

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.graph.facts import keep_initializers, reduces_space
from exporter.graph.file_names import names_in_file
from exporter.graph.inference import inferred_values

SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
PARAMETERS = {"Conv": ("", "weight", "bias"), "Gemm": ("", "weight", "bias"), "MatMul": ("", "weight")}


def make_readable(model: onnx.ModelProto) -> None:
    """Give a traced model readable names and the usual pooling operators, and remove its metadata; in place."""
    _use_known_pooling(model.graph)
    _use_known_classifier(model.graph)
    _name_nodes(model.graph)
    _name_tensors(model.graph)
    _strip_metadata(model)


def make_file_readable(model: onnx.ModelProto) -> None:
    """Give a stranger's graph readable names and the usual pooling operators, and remove its metadata; in place.

    A node keeps the part of its own name that tells it from others: of `/layer1/layer1.0/conv1/Conv`, as PyTorch's
    older exporter writes it, `layer1.0.conv1`; of TensorFlow's `StatefulPartitionedCall/net/conv1_conv/Conv2D`,
    `conv1_conv`. A node without a name is called after its operator. No two get the same.
    """
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred_values(model).value_info)
    _use_known_pooling(model.graph)
    _use_known_classifier(model.graph)
    _give_names(model.graph, names_in_file(model.graph))
    _name_tensors(model.graph)
    _strip_metadata(model)


def _use_known_pooling(graph: onnx.GraphProto) -> None:
    """Replace a mean over height and width, and a pool over the whole image, by a global pool.

    A Reshape that flattens the pooled tensor becomes a Flatten.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        value.name: [one.dim_value for one in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
    channels: dict[str, int] = {}  # of every globally pooled tensor
    for node in graph.node:
        shape = shapes.get(node.input[0], []) if node.input else []
        if _is_global_mean(node, shape, constants):
            _turn_into(node, "GlobalAveragePool")
        elif _is_global_pool(node, shape):
            _turn_into(node, f"Global{node.op_type}")
        elif (
            node.op_type == "Reshape"
            and node.input[0] in channels
            and _flattens(node, channels[node.input[0]], constants)
        ):
            _turn_into(node, "Flatten", axis=1)
        if node.op_type.startswith("Global") and len(shape) > 1:
            channels[node.output[0]] = shape[1]
    keep_initializers(graph, {name for node in graph.node for name in node.input})


def _is_global_mean(node: onnx.NodeProto, shape: Sequence[int], constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node is a ReduceMean over height and width, its axes an input, that keeps both as axes of size 1."""
    if node.op_type != "ReduceMean" or len(node.input) != 2 or len(shape) != 4:
        return False
    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    return keeps == 1 and reduces_space(node, constants)


def _is_global_pool(node: onnx.NodeProto, shape: Sequence[int]) -> bool:
    """Whether a node is a pool without padding whose only window is the whole image."""
    if node.op_type not in ("MaxPool", "AveragePool") or len(node.output) != 1 or len(shape) != 4:
        return False
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    is_bordered = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
    window = list(attributes["kernel_shape"])
    return not is_bordered and set(attributes.get("dilations", ())) <= {1} and window == list(shape[2:]) != [1, 1]


def _flattens(node: onnx.NodeProto, channels: int, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node makes (batch, channels) of (batch, channels, 1, 1); a Reshape may also mix the two."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Flatten":
        return bool(attributes.get("axis", 1) == 1)
    if node.op_type != "Reshape" or node.input[1] not in constants:
        return False
    target = numpy_helper.to_array(constants[node.input[1]]).tolist()
    keeps_batch = target[:1] == [0] and not attributes.get("allowzero", 0)
    return (len(target) == 2 and channels > 0 and target[1] == channels and (target[0] == -1 or keeps_batch)) or (
        keeps_batch and target[1:] == [-1]
    )


def _use_known_classifier(graph: onnx.GraphProto) -> None:
    """Replace a 1x1 convolution of a globally pooled tensor and the Flatten after it by Flatten and Gemm.

    Some of timm's heads are convolutions.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    pooled = {node.output[0] for node in graph.node if node.op_type.startswith("Global")}
    outputs = {value.name for value in graph.output}
    used = {*tensors, *(name for node in graph.node for name in (*node.input, *node.output))}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[0] not in pooled or node.input[1] not in tensors:
            continue
        weight, behind = tensors[node.input[1]], users.get(node.output[0], [])
        if (
            not _is_pointwise(node, weight)
            or len(users[weight.name]) > 1
            or len(behind) != 1
            or node.output[0] in outputs
        ):
            continue
        if behind[0].output[0] in outputs and _flattens(behind[0], weight.dims[0], tensors):
            if len(node.input) < 3:  # torch leaves a bias of zeros out
                node.input.append(distinct(f"{weight.name.removesuffix('weight')}bias", used))
                graph.initializer.append(numpy_helper.from_array(np.zeros(weight.dims[0], np.float32), node.input[2]))
            del weight.dims[2:]
            _swap_with_flatten(node, behind[0])
    keep_initializers(graph, {name for node in graph.node for name in node.input})


def _is_pointwise(node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    """Whether the convolution of a one-pixel image is a matrix product over its channels."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    is_bordered = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return tuple(weight.dims[2:]) == (1, 1) and bool(attributes.get("group", 1) == 1) and not is_bordered


def _swap_with_flatten(convolution: onnx.NodeProto, flatten: onnx.NodeProto) -> None:
    """Turn a convolution and the Flatten after it into a Flatten and a Gemm, each with the other's metadata."""
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(helper.make_node("Flatten", [convolution.input[0]], [convolution.output[0]], axis=1))
    second.CopyFrom(
        helper.make_node("Gemm", [convolution.output[0], *convolution.input[1:]], [flatten.output[0]], transB=1)
    )
    first.metadata_props.extend(flatten.metadata_props)
    second.metadata_props.extend(convolution.metadata_props)
    convolution.CopyFrom(first)
    flatten.CopyFrom(second)


def _turn_into(node: onnx.NodeProto, operator: str, **attributes: int) -> None:
    """Turn a node with one data input and one constant into another operator with the data input alone."""
    node.op_type = operator
    del node.input[1:]
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name the first node of a module after it, and number the others (a module may be called twice).

    Numbered names avoid the names of other modules.
    """
    constants = {tensor.name for tensor in graph.initializer}
    _give_names(graph, [_module_name(node, constants) for node in graph.node])


def _give_names(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give the nodes these names; the second of two that are the same, and later ones, get a number."""
    used, seen = set(names), set()
    for node, name in zip(graph.node, names, strict=True):
        node.name = distinct(name, used) if name in seen else name
        seen.add(name)


def distinct(name: str, used: set[str]) -> str:
    """The name, with the first free number if it is in `used`; the result is added to `used`."""
    candidates = chain([name], (f"{name}_{place}" for place in count(1)))
    result = next(one for one in candidates if one not in used)
    used.add(result)
    return result


def _module_name(node: onnx.NodeProto, constants: set[str]) -> str:
    """The name of a node's module; for a function called between modules, the surrounding module and the operator."""
    if (
        node.op_type in PARAMETERS
        and len(node.input) > 1
        and node.input[1] in constants
        and node.input[1].endswith(".weight")
    ):
        # By the weight: a convolution that took in its batch norm carries the batch norm's scopes.
        return str(node.input[1]).removesuffix(".weight")
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
    used = set(names)
    for node in graph.node:
        for place, output in enumerate(node.output):
            if output and output not in names:
                names[output] = distinct(
                    f"{node.name}.out" if len(node.output) == 1 else f"{node.name}.out{place}", used
                )
        for place, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = distinct(f"{node.name}.{_formal_name(node.op_type, place)}", used)
    for node in graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                values[place] = names.get(value, value)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _formal_name(operator: str, place: int) -> str:
    """ONNX's name of an operator's input; inputs that share one name, as Concat's do, are numbered."""
    if operator in PARAMETERS:
        return PARAMETERS[operator][place]
    inputs = onnx.defs.get_schema(operator).inputs
    formal = inputs[min(place, len(inputs) - 1)]
    return (
        f"{formal.name}{place}"
        if formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        else str(formal.name)
    )


def _strip_metadata(model: onnx.ModelProto) -> None:
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]
    graph.name = "resnet"
    model.doc_string = ""
