"""Free the batch of a graph that was saved for one size, in place: what its constants say of the batch is rewritten.

Whether that is sound is not shown here: `exporter.graph.intake.take` runs the graph at three sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from exporter.graph.inference import Shape, inferred_graphs
from exporter.graph.intake.wiring import Wiring, add_constant, attributes_of
from exporter.graph.trace import BATCH


def free_batch(model: onnx.ModelProto, name: str) -> str:
    """Make the first dimension of the input `name` free, and that of the outputs.

    A Reshape to (batch, ...) copies that dimension, a Squeeze of all axes of size 1 leaves the first, an Expand to
    (batch, ...) leaves it.

    Returns:
        what was done, in words.
    """
    shapes = inferred_graphs(model)[0].shapes
    graph = model.graph
    value = next(one for one in graph.input if one.name == name)
    size = int(value.type.tensor_type.shape.dim[0].dim_value)
    wiring = Wiring(graph)
    changed = [kind for node in graph.node if (kind := _free(node, wiring, shapes, size))]
    set_batch(graph, name)
    counts = {kind: changed.count(kind) for kind in dict.fromkeys(changed)}
    how = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"batch of {size} made free{f' ({how} rewritten)' if how else ''}"


def set_batch(graph: onnx.GraphProto, name: str) -> None:
    """Call the first dimension of the input and of the outputs `batch`; what is declared of inner tensors is left
    out."""
    del graph.value_info[:]
    for value in graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value in graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _free(node: onnx.NodeProto, wiring: Wiring, shapes: Mapping[str, Shape], size: int) -> str:
    """Rewrite what a node says of a batch of `size`; the node's operator, or an empty text where it says nothing."""
    graph = wiring.graph
    if node.op_type in ("Reshape", "Expand") and len(node.input) == 2:
        target = wiring.value(node.input[1])
        if target is None or target.ndim != 1 or not len(target) or int(target[0]) != size:
            return ""
        before = shapes.get(node.input[0], ())
        if node.op_type == "Reshape" and (attributes_of(node).get("allowzero") or not before or before[0] != size):
            return ""
        fresh = np.array([0 if node.op_type == "Reshape" else 1, *target[1:]], np.int64)
        if np.array_equal(fresh, target):
            return ""
        node.input[1] = add_constant(graph, fresh, f"{node.input[1]}.free")
        return str(node.op_type)
    if node.op_type == "Squeeze" and size == 1 and len([one for one in node.input if one]) == 1:
        before = shapes.get(node.input[0], ())
        axes = [place for place, one in enumerate(before) if one == 1 and place > 0]
        if not before or any(one is None for one in before):
            return ""
        if len(node.input) == 2:
            del node.input[1]
        node.input.append(add_constant(graph, np.array(axes, np.int64), f"{node.output[0]}.axes"))
        return str(node.op_type)
    return ""
