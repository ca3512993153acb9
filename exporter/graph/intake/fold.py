"""Fold what scales and shifts channels into the convolution or matrix product beside it, and zeros into its padding.

Batch norms, and Mul, Div, Add and Sub with one constant for each channel, compute y = a x + b. Behind a convolution
W x + c that is (a W) x + (a c + b). In front of one without padding it is (W a) x + (c + W b): with padding the border
would be wrong, unless b is 0. Everything is computed in double precision and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from exporter.graph.intake.wiring import Wiring, add_constant, attributes_of, remove_nodes, set_attribute
from exporter.graph.simplify import DEFAULT_EPSILON
from runtimes.printable import count_text

SCALES = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
LOWEST = -3e38
"""What pads a pool that looks for the largest value."""


class Scale(NamedTuple):
    """y = factor x + shift, each float64 (channels,) or (1,)."""

    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def fold_scales(model: onnx.ModelProto) -> str:
    """Fold batch norms and other scales and shifts into the convolutions and matrix products beside them; in place.

    Returns:
        what was done, in words; empty where there was nothing.
    """
    graph = model.graph
    norms = sum(node.op_type == "BatchNormalization" for node in graph.node)
    behind = _fold_each(graph, _fold_behind)
    front = _fold_each(graph, _fold_in_front)
    left = sum(node.op_type == "BatchNormalization" for node in graph.node)
    said = [f"{norms - left} of {count_text(norms, 'batch norm')}"] if norms else []
    others = behind + front - (norms - left)
    said += [f"{count_text(others, 'constant')} of Mul, Div, Add or Sub"] if others else []
    return f"folded into convolutions and matrix products: {', '.join(said)}" if behind or front else ""


def fold_paddings(model: onnx.ModelProto) -> str:
    """Let convolutions and max pools pad by themselves, where a Pad in front of them does it; in place.

    Returns:
        what was done, in words; empty where there was nothing.
    """
    count = _fold_each(model.graph, _fold_padding)
    return f"{count_text(count, 'Pad')} folded into the convolution or pool behind" if count else ""


def _fold_each(graph: onnx.GraphProto, fold: Any) -> int:
    """Fold as long as something can be folded; returns how many nodes went."""
    count = 0
    while True:
        wiring = Wiring(graph)
        gone = []
        touched: set[int] = set()
        for node in graph.node:
            if id(node) in touched:
                continue
            other = fold(graph, wiring, node)
            if other is not None:
                gone.append(other)
                touched |= {id(node), id(other)}
                # Edges have changed: what is beside these two is looked at in the next round.
                touched |= {id(one) for name in (*node.input, *node.output) for one in wiring.users.get(name, ())}
                touched |= {id(wiring.makers[name]) for name in node.input if name in wiring.makers}
        if not gone:
            return count
        remove_nodes(graph, gone)
        count += len(gone)


def _fold_behind(graph: onnx.GraphProto, wiring: Wiring, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Fold the scale behind a convolution or a Gemm into it; the node that is not needed any more."""
    weight = _own_weight(wiring, node)
    behind = wiring.only_user(node.output[0]) if weight is not None else None
    if weight is None or behind is None or behind.op_type not in SCALES:
        return None
    axis = 0 if node.op_type == "Conv" or attributes_of(node).get("transB") else 1
    scale = _scale_of(wiring, behind, node.output[0], weight.shape[axis], rank=4 if node.op_type == "Conv" else 2)
    if scale is None:
        return None
    bias = _bias_of(wiring, node, weight.shape[axis])
    if bias is None:
        return None
    along = [1] * weight.ndim
    along[axis] = -1
    if (scale.factor != 1).any():
        node.input[1] = add_constant(graph, _rounded(weight * scale.factor.reshape(along)), f"{node.input[1]}.folded")
    _set_bias(graph, node, bias * scale.factor + scale.shift)
    node.output[0] = behind.output[0]
    return behind


def _fold_in_front(graph: onnx.GraphProto, wiring: Wiring, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Fold a scale into the convolution that alone reads it; the scale's node."""
    if node.op_type not in SCALES or not node.output:
        return None
    behind = wiring.only_user(node.output[0])
    if behind is None or behind.op_type != "Conv" or behind.input[0] != node.output[0]:
        return None
    weight = _own_weight(wiring, behind)
    computed = [name for name in node.input if name not in wiring.constants]
    if weight is None or len(computed) != 1 or not _is_behind_a_network(wiring, computed[0]):
        return None
    groups = int(attributes_of(behind).get("group", 1))
    channels = weight.shape[1] * groups
    scale = _scale_of(wiring, node, computed[0], channels, rank=4)
    bias = _bias_of(wiring, behind, len(weight))
    if scale is None or bias is None or (_is_padded(behind) and (scale.shift != 0).any()):
        return None
    factor, shift = (np.broadcast_to(one, channels).reshape(groups, 1, -1, 1, 1) for one in scale)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    moved = (grouped * shift).sum((2, 3, 4)).ravel()
    behind.input[1] = add_constant(
        graph, _rounded((grouped * factor).reshape(weight.shape)), f"{behind.input[1]}.folded"
    )
    _set_bias(graph, behind, bias + moved)
    behind.input[0] = computed[0]
    return node


def _is_behind_a_network(wiring: Wiring, tensor: str) -> bool:
    """Is a tensor computed, rather than the graph's input? What is done to pixels first stays as it is written."""
    return tensor in wiring.makers


def _fold_padding(graph: onnx.GraphProto, wiring: Wiring, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Fold a Pad into the convolution or the max pool that alone reads it; the Pad."""
    if node.op_type != "Pad" or len(node.input) < 2 or attributes_of(node).get("mode", "constant") != "constant":
        return None
    behind, pads = wiring.only_user(node.output[0]), wiring.value(node.input[1])
    if behind is None or pads is None or behind.op_type not in ("Conv", "MaxPool") or len(node.input) > 3:
        return None
    attributes = attributes_of(behind)
    filled = wiring.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if pads.size != 8 or filled is None or behind.input[0] != node.output[0]:
        return None
    starts, ends = pads[:4].astype(int), pads[4:].astype(int)
    if starts[:2].any() or ends[:2].any() or pads.min() < 0:
        return None
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attributes.get("ceil_mode"):
        return None
    if behind.op_type == "MaxPool" and not _pads_a_pool(wiring, node, filled, attributes, int(pads.max())):
        return None
    if behind.op_type == "Conv" and float(filled.ravel()[0]) != 0:
        return None
    own = attributes.get("pads", [0, 0, 0, 0])
    set_attribute(behind, "pads", [int(a + b) for a, b in zip(own, (*starts[2:], *ends[2:]), strict=True)])
    set_attribute(behind, "auto_pad", "NOTSET")
    behind.input[0] = node.input[0]
    return node


def _pads_a_pool(
    wiring: Wiring, pad: onnx.NodeProto, filled: NDArray[Any], attributes: dict[str, Any], widest: int
) -> bool:
    """Is padding by a max pool, which ignores its border, the same as this Pad's?

    It is for the lowest number, and for zeros around values that are none below zero.
    """
    if widest >= min(attributes["kernel_shape"]):
        return False
    value = float(filled.ravel()[0])
    before = wiring.makers.get(pad.input[0])
    return value <= LOWEST or (value == 0 and before is not None and before.op_type == "Relu")


def _own_weight(wiring: Wiring, node: onnx.NodeProto) -> NDArray[np.float64] | None:
    """The weight of a Conv or a plain Gemm, float64; None for another node, or one whose weight is computed."""
    if node.op_type not in ("Conv", "Gemm") or node.input[1] not in wiring.constants:
        return None
    if wiring.constants[node.input[1]].data_type != TensorProto.FLOAT:
        return None
    attributes = attributes_of(node)
    if node.op_type == "Gemm" and (
        attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA")
    ):
        return None
    value = wiring.value(node.input[1])
    assert value is not None
    return value.astype(np.float64)


def _bias_of(wiring: Wiring, node: onnx.NodeProto, count: int) -> NDArray[np.float64] | None:
    """The bias of a node, float64 (count,), zeros where it has none; None where it is computed."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(count)
    value = wiring.value(node.input[2])
    return None if value is None else np.broadcast_to(value.astype(np.float64).ravel(), (count,)).copy()


def _set_bias(graph: onnx.GraphProto, node: onnx.NodeProto, bias: NDArray[np.float64]) -> None:
    name = node.input[2] if len(node.input) > 2 and node.input[2] else f"{node.input[1]}.bias"
    fresh = add_constant(graph, _rounded(bias), f"{name}.folded")
    if len(node.input) > 2:
        node.input[2] = fresh
    else:
        node.input.append(fresh)


def _scale_of(wiring: Wiring, node: onnx.NodeProto, tensor: str, channels: int, *, rank: int) -> Scale | None:
    """The scale that a node applies to a tensor of `rank` axes, `channels` along the second; None where it is none."""
    if node.op_type == "BatchNormalization":
        values = [wiring.value(name) for name in node.input[1:5]]
        if node.input[0] != tensor or any(value is None or value.size != channels for value in values):
            return None
        weight, bias, mean, variance = (value.astype(np.float64) for value in values if value is not None)
        factor = weight / np.sqrt(variance + attributes_of(node).get("epsilon", DEFAULT_EPSILON))
        return Scale(factor, bias - mean * factor)
    name = wiring.other_input(node, tensor)
    value = wiring.value(name) if name else None
    if value is None or value.dtype != np.float32 or value.ndim > rank:
        return None
    if value.size != 1 and ((1,) * (rank - value.ndim) + value.shape)[1] != value.size:
        return None
    if value.size not in (1, channels):
        return None
    constant, one, zero = value.astype(np.float64).ravel(), np.ones(1), np.zeros(1)
    is_first = node.input[0] == tensor
    if node.op_type == "Div":
        return Scale(1 / constant, zero) if is_first and (constant != 0).all() else None
    if node.op_type == "Sub":
        return Scale(one, -constant) if is_first else Scale(-one, constant)
    return Scale(constant, zero) if node.op_type == "Mul" else Scale(one, constant)


def _is_padded(node: onnx.NodeProto) -> bool:
    attributes = attributes_of(node)
    return any(attributes.get("pads", ())) or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)
