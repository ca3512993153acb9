"""Join an FP32 graph and the graph lowered from it into one, in which each reads tensors of the other.

Both stand side by side under prefixes. Where the lowered graph reads a tensor of the FP32 graph, the Cast that rounds
its own tensor rounds that one instead; where the FP32 graph reads a tensor of the lowered graph, it gets the rounded
values. Nodes that no output needs are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from onnx import helper

FP32, LOWERED = "fp32/", "lowered/"
EXACT, ALONE = "exact/", "alone/"
"""Prefixes of the outputs of `with_exact_block_inputs` and `with_exact_part_inputs`."""
ERROR, FLAT, PIXELS = "error/", "error.flat", "error.pixels"
ROUNDING = ("Cast", "QuantizeLinear", "DequantizeLinear")


def with_fp32_nodes(original: onnx.ModelProto, lowered: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """The lowered graph with some nodes computing in FP32, with FP32 weights, from the inputs that they have there.

    Args:
        original: the FP32 graph; its nodes and tensors have the lowered graph's names.
        lowered: the lowered graph as its precision simulates it.
        nodes: names of the nodes to compute in FP32. With none the result computes what `lowered` does, with all what
            `original` does.
    """
    in_fp32 = {name: node.name in nodes for node in original.graph.node for name in node.output}
    names = _lowered_names(original.graph, lowered.graph)
    makers = {name: node for node in lowered.graph.node for name in node.output}
    to_lowered = {names[name]: f"{FP32}{name}" for name, is_fp32 in in_fp32.items() if is_fp32}
    rounded = {name: source for name, source in to_lowered.items() if makers[name].op_type == "Cast"}
    taken = {name: source for name, source in to_lowered.items() if name not in rounded}
    inputs = _shared_names(original.graph)
    inside = [
        _with_prefix(
            node,
            LOWERED,
            {node.input[0]: rounded[node.output[0]]} if node.output[0] in rounded else {**inputs, **taken},
        )
        for node in lowered.graph.node
    ]
    to_fp32 = (name for name, is_fp32 in in_fp32.items() if not is_fp32)
    given = {
        name: f"{LOWERED}{names[name]}.wide" if f"{names[name]}.wide" in makers else f"{LOWERED}{names[name]}"
        for name in to_fp32
    }
    outside = [_with_prefix(node, FP32, {**inputs, **given}) for node in original.graph.node]
    return _join(
        original,
        lowered,
        outside + inside,
        {value.name: given.get(value.name, f"{FP32}{value.name}") for value in original.graph.output},
    )


def with_exact_block_inputs(
    original: onnx.ModelProto, lowered: onnx.ModelProto, ends: Sequence[str]
) -> onnx.ModelProto:
    """Feed each lowered block exact FP32 input, so that each output shows that block's error alone.

    Args:
        ends: the tensors at which one block ends and the next begins. Each is returned twice: as the FP32 graph makes
            it, under `EXACT`, and under `ALONE` as the lowered block does, rounded, to INT8 as well, so that the error
            of its range counts for the block that makes it and not for the next one.
    """
    names = _lowered_names(original.graph, lowered.graph)
    produced = {name for node in lowered.graph.node for name in node.output}
    forms = {f"{names[end]}.exact" if f"{names[end]}.exact" in produced else names[end]: end for end in ends}
    for node in lowered.graph.node:
        if node.op_type in ROUNDING and node.input[0] in forms:
            forms[node.output[0]] = forms[node.input[0]]
    inputs = _shared_names(original.graph)
    exact = inputs | {name: f"{FP32}{end}" for name, end in forms.items()}
    inside = [
        _with_prefix(node, LOWERED, inputs if node.op_type in ROUNDING and node.input[0] in forms else exact)
        for node in lowered.graph.node
    ]
    outside = [_with_prefix(node, FP32, inputs) for node in original.graph.node]
    outputs = {f"{EXACT}{end}": f"{FP32}{end}" for end in ends}
    outputs |= {f"{ALONE}{end}": f"{LOWERED}{name}" for name, end in forms.items()}
    return _join(original, lowered, outside + inside, outputs)


def with_exact_part_inputs(
    original: onnx.ModelProto, lowered: onnx.ModelProto, tensors: Sequence[str]
) -> onnx.ModelProto:
    """Feed each lowered part exact FP32 input, so that each output shows what lowering that part alone costs.

    Here the rounding of a tensor, to INT8 as well, counts for the part that reads it, since it goes when that part
    returns to float; in `with_exact_block_inputs` it counts for the part that makes it.

    Args:
        lowered: the lowered graph as its precision simulates it.
        tensors: those at which one part ends and another begins. Each is returned twice: as the FP32 graph makes it,
            under `EXACT`, and as the lowered part does, before it is rounded, under `ALONE`.
    """
    names = _lowered_names(original.graph, lowered.graph)
    produced = {name for node in lowered.graph.node for name in node.output}
    unrounded = {
        name: f"{names[name]}.exact" if f"{names[name]}.exact" in produced else names[name] for name in tensors
    }
    inputs = _shared_names(original.graph)
    exact = inputs | {unrounded[name]: f"{FP32}{name}" for name in tensors}
    nodes = [_with_prefix(node, FP32, inputs) for node in original.graph.node]
    nodes += [_with_prefix(node, LOWERED, exact) for node in lowered.graph.node]
    outputs = {f"{EXACT}{name}": f"{FP32}{name}" for name in tensors}
    return _join(
        original, lowered, nodes, outputs | {f"{ALONE}{name}": f"{LOWERED}{unrounded[name]}" for name in tensors}
    )


def with_mean_errors(original: onnx.ModelProto, lowered: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Feed every lowered node exact FP32 input, and return the mean error of what it gives, channel by channel.

    Args:
        lowered: a graph of the original's nodes and tensors, with Q/DQ pairs in between.
        tensors: some of the original's, (images, channels, ...). The result's outputs have their names, and are
            float32 (channels,): the mean over the batch and all pixels of the lowered value minus the exact one.
    """
    names = _lowered_names(original.graph, lowered.graph)
    inputs = _shared_names(original.graph)
    exact = inputs | {names[name]: f"{FP32}{name}" for node in original.graph.node for name in node.output if name}
    nodes = [_with_prefix(node, FP32, inputs) for node in original.graph.node]
    nodes += [_with_prefix(node, LOWERED, exact) for node in lowered.graph.node]
    nodes.append(helper.make_node("Constant", [], [FLAT], value_ints=[0, 0, -1]))
    nodes.append(helper.make_node("Constant", [], [PIXELS], value_ints=[0, 2]))
    for name in tensors:
        error, flat = f"{ERROR}{name}", f"{ERROR}{name}.flat"
        nodes.append(helper.make_node("Sub", [f"{LOWERED}{names[name]}", f"{FP32}{name}"], [error]))
        nodes.append(helper.make_node("Reshape", [error, FLAT], [flat]))
        nodes.append(helper.make_node("ReduceMean", [flat, PIXELS], [f"{error}.mean"], keepdims=0))
    return _join(original, lowered, nodes, {name: f"{ERROR}{name}.mean" for name in tensors})


def _join(
    original: onnx.ModelProto, lowered: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, str]
) -> onnx.ModelProto:
    """A model of those of `nodes`, prefixed nodes of both graphs, that its outputs need.

    Args:
        outputs: name of an output -> the prefixed tensor that it returns.
    """
    nodes = [*nodes, *(helper.make_node("Identity", [tensor], [name]) for name, tensor in outputs.items())]
    nodes = _needed_nodes(nodes, outputs)
    read = {name for node in nodes for name in node.input}
    declared = {value.name: value for value in original.graph.output}
    values = [declared.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    graph = helper.make_graph(nodes, "mixed", original.graph.input, values)
    result = helper.make_model(graph, opset_imports=lowered.opset_import, ir_version=lowered.ir_version)
    for prefix, model in ((FP32, original), (LOWERED, lowered)):
        for tensor in model.graph.initializer:
            if f"{prefix}{tensor.name}" in read:
                # Straight into the model: each call of a helper copies all weights once more.
                weight = result.graph.initializer.add()
                weight.CopyFrom(tensor)
                weight.name = f"{prefix}{tensor.name}"
    return result


def _lowered_names(original: onnx.GraphProto, lowered: onnx.GraphProto) -> dict[str, str]:
    """FP32 graph's tensor -> its name in the lowered graph; for an output, the name before its last Cast."""
    casts = {
        node.output[0]: node.input[0]
        for node in lowered.node
        if node.op_type == "Cast" and node.name == f"{node.output[0]}.cast"
    }
    outputs = {value.name for value in original.output}
    return {name: casts.get(name, name) if name in outputs else name for node in original.node for name in node.output}


def _shared_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Names that get no prefix: that of the input, which both graphs share, and the empty one of an omitted input."""
    return {value.name: value.name for value in graph.input} | {"": ""}


def _with_prefix(node: onnx.NodeProto, prefix: str, instead: Mapping[str, str]) -> onnx.NodeProto:
    """A copy whose names all have a prefix, except for the inputs that `instead` replaces."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.name = f"{prefix}{node.name}" if node.name else ""
    result.input[:] = [instead.get(name, f"{prefix}{name}") for name in node.input]
    result.output[:] = [f"{prefix}{name}" if name else "" for name in node.output]
    return result


def _needed_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, in topological order."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    ordered, seen = [], set()
    stack = [(makers[name], False) for name in outputs]
    while stack:
        place, is_ready = stack.pop()
        if is_ready:
            ordered.append(nodes[place])
        elif place not in seen:
            seen.add(place)
            stack.append((place, True))
            stack += [(makers[name], False) for name in nodes[place].input if name in makers]
    return ordered
