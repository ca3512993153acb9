"""Make a quantized network fit a target: the linter's rules, followed by what keeps the network's function."""

from __future__ import annotations

import numpy as np

from exporter.graph.blocks import residuals
from exporter.lowering.qdq.lint import ACTIVATIONS
from exporter.lowering.qdq.targets import Edge
from exporter.lowering.qdq.targets._float import global_pools
from exporter.lowering.requantize.rules import Desk
from exporter.lowering.requantize.trained import BYTES, Pair, note
from runtimes.errors import PlanError

AFFINE = ("Conv", "BatchNormalization", "Add", "Sub", "Mul", "Div")
STEPS = 127
"""Of INT8 above zero."""
REMEDY = "take --recalibrate, quantize again symmetrically to INT8, or take --target cpu"
WIDER = "range widened from {} steps to those of 8 bits: values that the file clips pass"
NO_SCALE = "left in float, since the file has no scale for its {}"
SHARED = "{} rounded, too, by the Q/DQ pair through which others read the same tensor"
RECALIBRATE = "take --recalibrate, or quantize again"


def fit_tensorrt(desk: Desk) -> None:
    """Take off the pairs that keep TensorRT from fusing, or that gain little, and leave half-quantized nodes in float.

    Raises:
        PlanError: a zero point stands for other than zero in INT8; names the node.
    """
    _float_heads(desk)
    for node in desk.graph.node:
        maker = desk.makers.get(node.input[0]) if node.op_type in ACTIVATIONS else None
        if maker is not None and maker.op_type in AFFINE:
            desk.take_off(Edge(node.name, 0), f"between a convolution and its {node.op_type}")
    _float_unpaired_weights(desk)
    for residual in residuals(desk.graph):
        main = Edge(residual.addition.name, 1 - residual.shortcut)
        shortcut = Edge(residual.addition.name, residual.shortcut)
        if main not in desk.pairs and shortcut in desk.pairs:
            continue
        if shortcut not in desk.pairs:
            _share(desk, shortcut, "shortcut")
        if shortcut in desk.pairs:
            desk.take_off(main, "on the convolution's side of an addition, since TensorRT fuses the two without it")
    _check_signed(desk)
    for pair in desk.pairs.values():
        if pair.high < STEPS or -STEPS < pair.low < 0:
            note(desk.notes, WIDER.format(pair.high - pair.low), pair.node)


def fit_processors(desk: Desk) -> None:
    """Let every reader of a tensor that integer kernels make read it through its pair.

    Raises:
        PlanError: a type is not one of bytes; names the node.
    """
    _float_wide_classifiers(desk)
    _float_unpaired_weights(desk)
    kernels = {node.name for node in desk.quantized()} | {one.addition.name for one in residuals(desk.graph)}
    for tensor in (*(value.name for value in desk.graph.input), *desk.makers):
        edges, maker = desk.edges(tensor), _maker_behind_activation(desk, tensor)
        readers = [edge.node for edge in edges if edge.node in kernels]
        if tensor in desk.outputs or _goes_on_to_activation(desk, edges) or not (readers or maker in kernels):
            continue
        if any(edge in desk.pairs for edge in edges):
            for edge in edges:
                _share(desk, edge, "input")
        else:
            for name, what in ((maker, "output"), *((name, "input") for name in readers)):
                if name in kernels:
                    note(desk.notes, NO_SCALE.format(what), name)
    for pair in desk.pairs.values():
        if pair.high - pair.low < 255:
            note(desk.notes, WIDER.format(pair.high - pair.low), pair.node)


def check_bytes(desk: Desk) -> None:
    """Refuse pairs that are not of eight bits, or not per tensor.

    Raises:
        PlanError: names the first.
    """
    for pair in desk.pairs.values():
        if pair.type not in BYTES:
            raise PlanError(f"expected pairs of INT8 or UINT8, got {pair.type} at '{pair.node}'; {RECALIBRATE} to INT8")
        if pair.channels > 1:
            raise PlanError(
                f"expected activations quantized per tensor, got {pair.channels} scales at '{pair.node}'; "
                f"{RECALIBRATE} per tensor"
            )
        if not np.isfinite(pair.scale) or pair.scale <= 0:
            raise PlanError(f"expected scales above 0, got {pair.scale:g} at '{pair.node}'; {RECALIBRATE}")
    for weight in desk.network.weights.values():
        if weight.scales is not None and not ((weight.scales > 0) & np.isfinite(weight.scales)).all():
            raise PlanError(f"expected scales above 0, got others at '{weight.node}'; {RECALIBRATE}")


def _float_heads(desk: Desk) -> None:
    """Leave global pooling and classifiers in float: little work, and much of the accuracy."""
    pools = {node.output[0]: node for node in global_pools(desk.graph)}
    pooled = set(pools)
    for node in desk.graph.node:
        is_pool = bool(node.output) and node.output[0] in pools
        is_behind = node.op_type != "Conv" and not pooled.isdisjoint(node.input)
        if is_behind and not is_pool and len([name for name in node.input if name not in desk.tensors]) == 1:
            pooled.update(node.output)
        if is_pool or is_behind or node.op_type == "Gemm":
            for place in range(len(node.input)):
                desk.take_off(Edge(node.name, place), f"so that {node.op_type} computes in float")
            if len(node.input) > 1 and node.input[1] in desk.network.weights:
                note(desk.notes, "quantized weight written as floats", node.name)


def _float_wide_classifiers(desk: Desk) -> None:
    """Leave classifiers whose weights have more than 7 bits in float: with 8, processors without VNNI overflow, and 7
    cost accuracy."""
    for node in list(desk.quantized()):
        if node.op_type == "Gemm" and desk.is_wide(node.input[1]):
            why = "so that the classifier computes in float: its 8-bit weights overflow on processors without VNNI"
            desk.take_off(Edge(node.name, 0), why)


def _float_unpaired_weights(desk: Desk) -> None:
    """Say which convolutions have only one of input and weight quantized: they compute in float."""
    for node in desk.graph.node:
        if node.op_type != "Conv":
            continue
        has_pair, has_weight = Edge(node.name, 0) in desk.pairs, node.input[1] in desk.network.weights
        if has_weight and not has_pair:
            note(desk.notes, NO_SCALE.format("input"), node.name)
        elif has_pair and not has_weight:
            note(desk.notes, NO_SCALE.format("weight"), node.name)
        elif not has_pair:
            note(desk.notes, "left in float, as in the file", node.name)


def _share(desk: Desk, edge: Edge, what: str) -> None:
    """Give an input without a pair that of another reader of the same tensor, if there is one."""
    found = [desk.pairs[other] for other in desk.edges(desk.tensor(edge)) if other in desk.pairs]
    if edge in desk.pairs:
        return
    if found:
        desk.pairs[edge] = found[0]
        note(desk.notes, SHARED.format(what), edge.node)
    else:
        note(desk.notes, NO_SCALE.format("input"), edge.node)


def _maker_behind_activation(desk: Desk, tensor: str) -> str:
    node = desk.makers.get(tensor)
    while node is not None and node.op_type in ("Relu", "Clip"):
        node = desk.makers.get(node.input[0])
    return "" if node is None else str(node.name)


def _goes_on_to_activation(desk: Desk, edges: list[Edge]) -> bool:
    return len(edges) == 1 and desk.nodes[edges[0].node].op_type in ("Relu", "Clip")


def _check_signed(desk: Desk) -> None:
    """Refuse what INT8 with a zero point of 0 cannot hold.

    Raises:
        PlanError: names the first.
    """
    for pair in desk.pairs.values():
        if pair.high > STEPS + 1 or pair.low < -STEPS - 1:
            raise PlanError(_unsigned_text(pair))
        if pair.high > STEPS:
            note(desk.notes, f"last of {pair.high} steps above zero clipped, since INT8 has {STEPS}", pair.node)
    for node in desk.quantized():
        weight = desk.network.weights[node.input[1]]
        scales = weight.given()
        if scales is not None and scales.zero_points.any():
            zero = int(weight.zero_points[np.argmax(scales.zero_points != 0)])
            raise PlanError(
                f"expected weights with zero points of 0, all that TensorRT takes, got {weight.type} with {zero} at "
                f"'{weight.node}'; {REMEDY}"
            )


def _unsigned_text(pair: Pair) -> str:
    if pair.low == 0:
        why = f"its {pair.high} steps above zero are {STEPS} in INT8, so half of them would be lost"
    else:
        why = f"TensorRT takes zero points of 0 alone, so some of its {pair.high - pair.low} steps would be lost"
    got = f"{pair.type} with {pair.zero_point} at '{pair.node}'"
    return f"expected INT8 with a zero point of 0, got {got}: {why}; {REMEDY}"
