"""Bring a stranger's graph to plain initializers, one input and our opset, in place."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.inference import LARGEST_SHAPE_CONSTANT
from exporter.graph.intake.wiring import Wiring, bypass, drop_unused, remove_nodes
from exporter.graph.trace import IR_VERSION
from runtimes.errors import BadInput
from runtimes.printable import count_text

OLDEST_OPSET = 7
"""The oldest that is read: before it, operators broadcast and normalise by other rules."""
CONSTANT_VALUES = ("value", "value_float", "value_floats", "value_int", "value_ints")


def make_plain(model: onnx.ModelProto) -> str:
    """Turn Constant nodes into initializers, take Identity and Dropout nodes off, and initializers out of the inputs.

    Returns:
        what was done, in words; empty for a graph that is plain.
    """
    graph, said = model.graph, []
    names = {tensor.name for tensor in graph.initializer}
    listed = [place for place, value in enumerate(graph.input) if value.name in names]
    for place in reversed(listed):
        del graph.input[place]
    if listed:
        said.append(f"{count_text(len(listed), 'weight')} no longer listed as inputs")
    constants = _constants_to_initializers(graph)
    if constants:
        said.append(f"{count_text(constants, 'Constant node')} turned into initializers")
    for operator in ("Identity", "Dropout"):
        wiring = Wiring(graph)
        idle = [node for node in graph.node if node.op_type == operator and _is_idle(node, wiring)]
        gone = [node for node in idle if bypass(graph, node)]
        remove_nodes(graph, gone)
        if gone:
            said.append(f"{count_text(len(gone), f'{operator} node')} removed")
    drop_unused(graph)
    del graph.value_info[:]
    del model.metadata_props[:]
    return ", ".join(said)


def _is_idle(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Does a Dropout or an Identity give its input, and nothing that is used beside it, such as a mask?"""
    beside = [name for name in node.output[1:] if name in wiring.users or name in wiring.outputs]
    return not beside and not drops(node, wiring)


def drops(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Is a node a Dropout that drops values when it is run?"""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    value = wiring.value(node.input[2])
    return value is None or bool(value.ravel()[0])


def _constants_to_initializers(graph: onnx.GraphProto) -> int:
    nodes = [node for node in graph.node if node.op_type == "Constant" and len(node.attribute) == 1]
    done = []
    for node in nodes:
        attribute = node.attribute[0]
        if attribute.name not in CONSTANT_VALUES:
            continue
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
        else:
            value = helper.get_attribute_value(attribute)
            kind = "float32" if "float" in attribute.name else "int64"
            tensor = numpy_helper.from_array(np.array(value, kind))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        done.append(node)
    remove_nodes(graph, done)
    return len(done)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def convert_opset(model: onnx.ModelProto, opset: int, where: str) -> str:
    """Convert a model to another opset, and to our version of the file format, in place.

    Returns:
        what was done, in words; empty where it is of that opset already.

    Raises:
        BadInput: an operator cannot be converted, which is named.
    """
    from onnx import version_converter  # a compiled module that few exports need

    found = opset_of(model)
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used and entry.domain not in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", found), *kept])
    model.ir_version = IR_VERSION
    if found == opset:
        return ""
    lean, large = _without_weights(model)
    try:
        converted = version_converter.convert_version(lean, opset)
    except Exception as error:  # the converter's C++ core raises RuntimeError, whatever is wrong
        raise BadInput(
            f"{where}: cannot convert it from opset {found} to {opset}: {_reason(error)}; save it with opset {opset}"
        ) from error
    inputs = [value for value in converted.graph.input if value.name not in large]
    graph = model.graph
    for place in reversed(range(len(graph.initializer))):  # the large ones stay where they are: a copy is memory
        if graph.initializer[place].name not in large:
            del graph.initializer[place]
    graph.initializer.extend(converted.graph.initializer)
    del graph.node[:], graph.input[:]
    graph.node.extend(converted.graph.node)
    graph.input.extend(inputs)
    del model.opset_import[:]
    model.opset_import.extend(converted.opset_import)
    make_plain(model)
    return f"opset {found} converted to {opset}"


def _without_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    """The model with its weights as inputs, and the weights' names: the converter would copy them several times."""
    lean = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph, large = model.graph, set[str]()
    lean.graph.name = graph.name or "graph"
    lean.graph.node.extend(graph.node)
    lean.graph.input.extend(graph.input)
    lean.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= LARGEST_SHAPE_CONSTANT:
            lean.graph.initializer.append(tensor)
        else:
            large.add(tensor.name)
            lean.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return lean, large


def _reason(error: Exception) -> str:
    """The converter's reason in a few words: it names the adapter of the operator that it lacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "dapter" in line), lines[-1] if lines else type(error).__name__)
    return said.split("failed: ")[-1].split("Failed: ")[-1]
