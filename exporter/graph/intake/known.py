"""Write the head of a stranger's network as ours are: a global pool, a Flatten and a Gemm; in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from exporter.graph.facts import reduces_space
from exporter.graph.inference import Shape, inferred_graphs
from exporter.graph.intake.wiring import Wiring, add_constant, attributes_of, drop_unused, remove_nodes, replace_nodes
from runtimes.printable import count_text
from runtimes.source_file import NHWC


def use_known_head(model: onnx.ModelProto) -> str:
    """Turn means over height and width that drop these axes into a global pool and a Flatten, and products with a
    constant matrix, with what is added to them, into a Gemm.

    Returns:
        what was done, in words; empty where there was nothing.
    """
    turned = _turn_means(model.graph)
    shapes = inferred_graphs(model)[0].shapes
    flattened = _flatten(model.graph, shapes)
    pools, products = _pool_means(model.graph, shapes), _use_gemm(model.graph, shapes)
    said = [f"{count_text(turned, 'Transpose')} before a mean removed"] if turned else []
    said += [f"{flattened} Reshape or Squeeze replaced by Flatten"] if flattened else []
    said += [f"{pools} ReduceMean replaced by GlobalAveragePool"] if pools else []
    said += [f"{products} MatMul replaced by Gemm"] if products else []
    return ", ".join(said)


def _flatten(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    """Turn what makes (batch, values) of (batch, channels, height, width) into a Flatten: a Reshape, whether or not its
    shape is computed from its input's, or a Squeeze.

    That the first dimension stays the batch is not looked at: whoever calls it runs the graph on several pictures.
    """
    count = 0
    for node in graph.node:
        before, behind = (shapes.get(names[0], ()) for names in (node.input, node.output))
        if node.op_type in ("Reshape", "Squeeze") and len(before) == 4 and len(behind) == 2 and before[0] == behind[0]:
            node.CopyFrom(helper.make_node("Flatten", [node.input[0]], list(node.output), name=node.name, axis=1))
            count += 1
    if count:
        drop_unused(graph)
    return count


def _turn_means(graph: onnx.GraphProto) -> int:
    """Let a mean over height and width that stands behind a Transpose to (batch, height, width, channels), as
    TensorFlow's do, read what is before it."""
    wiring, count = Wiring(graph), 0
    for node in graph.node:
        before = wiring.makers.get(node.input[0]) if node.op_type == "ReduceMean" and node.input else None
        if before is None or before.op_type != "Transpose" or attributes_of(before).get("perm") != list(NHWC):
            continue
        axes = wiring.value(node.input[1]) if len(node.input) == 2 else None
        if attributes_of(node).get("keepdims", 1) or axes is None or sorted(axes.ravel() % 4) != [1, 2]:
            continue
        node.input[0] = before.input[0]
        node.input[1] = add_constant(graph, np.array([2, 3], np.int64), f"{node.input[1]}.channels_first")
        count += 1
    if count:
        drop_unused(graph)
    return count


def _pool_means(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    wiring, nodes, count = Wiring(graph), [], 0
    for node in graph.node:
        if node.op_type != "ReduceMean" or attributes_of(node).get("keepdims", 1) != 0:
            nodes.append(node)
            continue
        if len(shapes.get(node.input[0], ())) != 4 or not reduces_space(node, wiring.constants):
            nodes.append(node)
            continue
        pooled = f"{node.output[0]}.pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}/Flatten", axis=1))
        count += 1
    if count:
        replace_nodes(graph, nodes)
    return count


def _use_gemm(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    wiring, gone, count = Wiring(graph), [], 0
    for node in graph.node:
        weight = wiring.value(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or len(shapes.get(node.input[0], ())) != 2 or weight.dtype != np.float32:
            continue
        behind = wiring.only_user(node.output[0])
        bias = None
        if behind is not None and behind.op_type == "Add":
            bias = wiring.value(wiring.other_input(behind, node.output[0]))
            if bias is not None and (bias.size != weight.shape[1] or bias.ndim > 2):
                bias = None
        name, output = node.name, node.output[0]
        if bias is not None and behind is not None:
            gone.append(behind)
            output = behind.output[0]
        transposed = add_constant(graph, weight.T, f"{node.input[1]}.transposed")
        values = np.zeros(weight.shape[1], np.float32) if bias is None else bias.ravel()
        added = add_constant(graph, values, f"{node.input[1]}.bias")
        node.CopyFrom(helper.make_node("Gemm", [node.input[0], transposed, added], [output], name=name, transB=1))
        count += 1
    remove_nodes(graph, gone)
    return count
