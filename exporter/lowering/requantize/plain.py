"""Write a stranger's graph plainly: constants as initializers, every node named, no node that does nothing.

Quantized weights stay quantized: a DequantizeLinear is never computed ahead. What computes in FP16 or BF16 is written
in FP32, since a target's own form is cast from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.facts import inline_functions, subgraphs, type_name
from exporter.graph.inference import inferred_graphs
from exporter.graph.intake.plain import convert_opset, opset_of
from exporter.graph.intake.wiring import drop_unused
from exporter.lowering.opsets import OPSETS
from exporter.lowering.qdq.constants import constant_tensor, evaluate
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
NOTHING = ("Identity", "Dropout")
"""Operators that pass their first input on."""
CHANCE = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def plain_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a quantized model that computes the same, plainly; weights in other files must be loaded."""
    result = onnx.ModelProto()
    result.CopyFrom(inline_functions(model))
    graph = result.graph
    for node in graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            node.domain = ""  # ONNX Runtime's own compute the same
    del graph.value_info[:]
    _fold_constants(graph, opset_of(result))
    _name_nodes(graph)
    _write_in_single(result)
    pass_through(graph, [node for node in graph.node if node.op_type in NOTHING])
    return result


def at_known_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float network in an opset of our own graphs: FP16 scales of Q/DQ need 19.

    Raises:
        BadInput: onnx cannot convert it.
    """
    if opset_of(model) in OPSETS:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    convert_opset(result, OPSETS[-1], "the float network behind the file")
    _fold_constants(result.graph, OPSETS[-1])  # what were attributes are constants now
    return result


def _fold_constants(graph: onnx.GraphProto, opset: int) -> None:
    """Compute ahead what depends on constants alone, except what weights are dequantized by; in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        made = _constant_outputs(node, tensors, opset)
        if made is None:
            kept.append(node)
        else:
            tensors.update(made)
    inputs = [value for value in graph.input if value.name not in tensors]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
    graph.initializer.extend(tensors.values())
    drop_unused(graph)


def _constant_outputs(
    node: onnx.NodeProto, tensors: Mapping[str, TensorProto], opset: int
) -> dict[str, TensorProto] | None:
    """What a node makes, if that is constant."""
    if node.op_type == "Constant":
        stored = constant_tensor(node)
        if stored is None:
            return None
        named = TensorProto()
        named.CopyFrom(stored)
        named.name = node.output[0]
        return {node.output[0]: named}
    given = [name for name in node.input if name]
    is_kept = node.op_type in (DEQUANTIZE, *CHANCE) or any(subgraphs(node)) or len(node.output) != 1
    if is_kept or not given or not all(name in tensors for name in given):
        return None
    arrays = {name: np.asarray(numpy_helper.to_array(tensors[name])) for name in given}
    value = evaluate(node, node.output[0], arrays, opset)
    return None if value is None else {node.output[0]: numpy_helper.from_array(value, node.output[0])}


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, in place: the one that it has, or its operator's."""
    taken: set[str] = set()
    for node in graph.node:
        wanted = node.name or f"{node.op_type.lower()}.{node.output[0]}"
        node.name = unused_name(wanted, taken)


def _write_in_single(model: onnx.ModelProto) -> None:
    """Write FP16 and BF16 as FP32, in place, and take out the casts that change nothing then."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type in HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in HALVES:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    types = inferred_graphs(model)[0].types
    casts = [node for node in graph.node if node.op_type == "Cast"]
    same = [node for node in casts if types.get(node.input[0]) == type_name(helper.get_node_attr_value(node, "to"))]
    pass_through(graph, same)


def pass_through(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Take out nodes that pass their first input on, in place.

    One that makes an output of the graph gives its name to what it passes on; it stays if that has a name that is
    known outside too.
    """
    outputs = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    sources: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in nodes:
        source, output = sources.get(node.input[0], node.input[0]), node.output[0]
        if any(filter(None, node.output[1:])):
            continue
        if output not in outputs:
            sources[output] = source
        elif source in made - outputs - names.keys():
            names[source] = output
    gone = sources.keys() | set(names.values())
    kept = [node for node in graph.node if not (node.input and node.output and node.output[0] in gone)]
    for node in kept:
        node.input[:] = [names.get(sources.get(name, name), sources.get(name, name)) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del graph.node[:]
    graph.node.extend(kept)


def unused_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of wanted.2, wanted.3 ... that is not taken; it is taken from then on."""
    numbered = (wanted if number == 1 else f"{wanted}.{number}" for number in count(1))
    name = next(one for one in numbered if one not in taken)
    taken.add(name)
    return name
