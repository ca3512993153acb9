"""An FP32 graph and what was lowered from it, joined into one graph in which each takes tensors from the other.

Both are put side by side under prefixes. Where the lowered one is to take a tensor of the FP32 one, the Cast that
rounds the tensor rounds that in its place; where the FP32 one is to take a tensor of the lowered one, it reads the
rounded value. What nothing reads is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

FP32, LOWERED = "fp32/", "lowered/"
ROUNDING = ("Cast", "QuantizeLinear", "DequantizeLinear")


def hybrid(original: onnx.ModelProto, lowered: onnx.ModelProto, returned: Collection[str]) -> onnx.ModelProto:
    """The lowered graph in which the nodes `returned` compute in FP32, with FP32 weights, what they are fed.

    Args:
        original: the FP32 graph; its nodes and tensors have the lowered graph's names.
        lowered: as the simulation of its precision has it.
        returned: names of nodes.

    With none returned it computes what `lowered` does, with all returned what `original` does.
    """
    computed = {name: node.name in returned for node in original.graph.node for name in node.output}
    names = _lowered_names(original.graph, lowered.graph)
    makers = {name: node for node in lowered.graph.node for name in node.output}
    to_lowered = {names[name]: f"{FP32}{name}" for name, is_returned in computed.items() if is_returned}
    rounded = {name: source for name, source in to_lowered.items() if makers[name].op_type == "Cast"}
    taken = {name: source for name, source in to_lowered.items() if name not in rounded}
    inputs = _kept(original.graph)
    inside = [
        _prefixed(
            node,
            LOWERED,
            {node.input[0]: rounded[node.output[0]]} if node.output[0] in rounded else {**inputs, **taken},
        )
        for node in lowered.graph.node
    ]
    to_fp32 = (name for name, is_returned in computed.items() if not is_returned)
    given = {
        name: f"{LOWERED}{names[name]}.wide" if f"{names[name]}.wide" in makers else f"{LOWERED}{names[name]}"
        for name in to_fp32
    }
    outside = [_prefixed(node, FP32, {**inputs, **given}) for node in original.graph.node]
    return _joined(
        original,
        lowered,
        outside + inside,
        {value.name: given.get(value.name, f"{FP32}{value.name}") for value in original.graph.output},
    )


def apart(original: onnx.ModelProto, lowered: onnx.ModelProto, ends: Sequence[str]) -> onnx.ModelProto:
    """A graph that gives the tensors `ends` as blocks of the lowered graph compute them from what is exact: what each
    does wrong by itself.

    Args:
        ends: the tensors at which one block ends and the next begins. Each is given as it was rounded, to INT8 too; so
            a block answers for the range of what it gives, and the next one, which is fed the exact tensor, does not.
    """
    names = _lowered_names(original.graph, lowered.graph)
    produced = {name for node in lowered.graph.node for name in node.output}
    forms = {f"{names[end]}.exact" if f"{names[end]}.exact" in produced else names[end]: end for end in ends}
    inputs = _kept(original.graph)
    taken = {name: f"{FP32}{end}" for name, end in forms.items()}
    inside = []
    for node in lowered.graph.node:
        is_rounding = node.op_type in ROUNDING and node.input[0] in forms
        inside.append(_prefixed(node, LOWERED, inputs if is_rounding else {**inputs, **taken}))
        if is_rounding:
            forms[node.output[0]] = forms[node.input[0]]
            taken[node.output[0]] = taken[node.input[0]]
    outside = [_prefixed(node, FP32, inputs) for node in original.graph.node]
    return _joined(original, lowered, outside + inside, {end: f"{LOWERED}{name}" for name, end in forms.items()})


def _joined(
    original: onnx.ModelProto, lowered: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, str]
) -> onnx.ModelProto:
    """A model of what is needed of `nodes`, those of both under their prefixes; `outputs` maps the result's outputs to
    their tensors."""
    nodes = [*nodes, *(helper.make_node("Identity", [tensor], [name]) for name, tensor in outputs.items())]
    nodes = _needed(nodes, outputs)
    read = {name for node in nodes for name in node.input}
    weights = []
    for prefix, model in ((FP32, original), (LOWERED, lowered)):
        for tensor in model.graph.initializer:
            if f"{prefix}{tensor.name}" in read:
                weights.append(TensorProto())
                weights[-1].CopyFrom(tensor)
                weights[-1].name = f"{prefix}{tensor.name}"
    declared = {value.name: value for value in original.graph.output}
    values = [declared.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    graph = helper.make_graph(nodes, "hybrid", original.graph.input, values, weights)
    return helper.make_model(graph, opset_imports=lowered.opset_import, ir_version=lowered.ir_version)


def _lowered_names(original: onnx.GraphProto, lowered: onnx.GraphProto) -> dict[str, str]:
    """What each computed tensor of the FP32 graph is called in the lowered one: an output is there the one behind a
    last Cast."""
    casts = {
        node.output[0]: node.input[0]
        for node in lowered.node
        if node.op_type == "Cast" and node.name == f"{node.output[0]}.cast"
    }
    outputs = {value.name for value in original.output}
    return {name: casts.get(name, name) if name in outputs else name for node in original.node for name in node.output}


def _kept(graph: onnx.GraphProto) -> dict[str, str]:
    """Names that get no prefix: both graphs' input is the result's, and an optional input left out has none."""
    return {value.name: value.name for value in graph.input} | {"": ""}


def _prefixed(node: onnx.NodeProto, prefix: str, instead: Mapping[str, str]) -> onnx.NodeProto:
    """A copy whose names all have a prefix, but for the inputs that are to be something else."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.name = f"{prefix}{node.name}" if node.name else ""
    result.input[:] = [instead.get(name, f"{prefix}{name}") for name in node.input]
    result.output[:] = [f"{prefix}{name}" if name else "" for name in node.output]
    return result


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs are computed by, each behind those that it reads from."""
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
