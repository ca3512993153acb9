"""Let a graph take (batch, channels, height, width), and recognise a normalisation that it does itself; in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from exporter.graph.intake.interface import TO_NCHW
from exporter.graph.intake.wiring import Wiring, add_constant, bypass, remove_nodes, replace_nodes
from runtimes.source_file import NHWC

CHANNELS_FIRST = "input changed from (batch, height, width, channels) to (batch, channels, height, width)"
SCALES = ("Add", "Sub", "Mul", "Div")
LARGEST_MEAN = 2.0
"""Above it, a mean is one of pixels of 0..255: of pixels of 0..1, it is at most 1."""
LARGEST_SCALED = 20.0
"""A pixel of 255 that comes out larger than this was meant to be of 0..1."""


def take_channels_first(model: onnx.ModelProto, name: str) -> str:
    """Let the input `name` of a graph, which takes (batch, height, width, channels), take the channels first.

    The Transpose behind the input is taken off, where what stands between works on every pixel alike; elsewhere one is
    put in front.

    Returns:
        what was done, in words.
    """
    graph = model.graph
    sizes = next(value for value in graph.input if value.name == name).type.tensor_type.shape.dim
    reordered = [sizes[axis] for axis in TO_NCHW]
    copies = []
    for size in reordered:
        copy = onnx.TensorShapeProto.Dimension()
        copy.CopyFrom(size)
        copies.append(copy)
    del sizes[:]
    sizes.extend(copies)
    wiring, chain = Wiring(graph), []
    node = wiring.only_user(name)
    while node is not None and node.op_type != "Transpose":
        chain.append(node)
        node = wiring.only_user(node.output[0])
    assert node is not None, "expected the Transpose that `layout_of` found"
    reorders = [_reorder(wiring, one) for one in chain]
    if all(one is not None for one in reorders):
        for one in reorders:
            if one is not None:
                one(graph)
        bypass(graph, node)
        remove_nodes(graph, [node])
        return f"{CHANNELS_FIRST}, and its Transpose removed"
    behind = f"{name}.channels_last"
    for one in graph.node:
        for place, given in enumerate(one.input):
            if given == name:
                one.input[place] = behind
    first = helper.make_node("Transpose", [name], [behind], name=behind, perm=list(NHWC))
    replace_nodes(graph, [first, *graph.node])
    return f"{CHANNELS_FIRST}, by a Transpose in front"


def _reorder(wiring: Wiring, node: onnx.NodeProto) -> Any:
    """A change of a node's constants, after which it works with the channels first; None where there is none."""
    if node.op_type in ("Relu", "Cast", "Identity"):
        return lambda graph: None
    constants = [name for name in node.input[1:] if name] or []
    constants += [node.input[0]] if node.input[0] in wiring.constants else []
    values = {name: wiring.value(name) for name in constants}
    if any(value is None for value in values.values()):
        return None
    if node.op_type in ("Clip", "QuantizeLinear", "DequantizeLinear"):
        is_for_all = all(value is not None and value.size == 1 for value in values.values())
        return (lambda graph: None) if is_for_all else None
    changed: dict[str, NDArray[Any]] = {}
    for name, value in values.items():
        assert value is not None
        if node.op_type == "Pad" and name == node.input[1]:
            if value.size != 8:
                return None
            changed[name] = value.reshape(2, 4)[:, list(TO_NCHW)].ravel()
        elif node.op_type in SCALES and value.size > 1:
            changed[name] = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(TO_NCHW)
    if node.op_type == "Pad" and len(node.input) > 3:
        return None

    def change(graph: onnx.GraphProto) -> None:
        for name, value in changed.items():
            fresh = add_constant(graph, value, f"{name}.channels_first")
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = fresh

    return change


class Normalisation(NamedTuple):
    """What a graph does to its pixels first: each is (pixel - mean) / std.

    Attributes:
        mean, std: one value per channel or one for all, on pixels of 0..`scale`.
        scale: 1 or 255: what the pixels seem to be, by the size of the numbers.
        nodes: how many do it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: int
    nodes: int


def normalisation_of(model: onnx.ModelProto, name: str) -> Normalisation | None:
    """The normalisation that a graph with the channels first does to its input `name`; None where it does none.

    Numbers that pixels of 0..1 and of 0..255 do not have are none: a mean below 0, a division by more than the largest
    pixel, or nothing at all (a product with 1). Such a graph takes pixels that were normalised before.
    """
    wiring = Wiring(model.graph)
    factor, shift, count, tensor = np.ones(1), np.zeros(1), 0, name
    while (node := wiring.only_user(tensor)) is not None and node.op_type in SCALES:
        other = wiring.value(wiring.other_input(node, tensor))
        step = None if other is None else _per_channel(other)
        if step is None:
            break
        first = node.input[0] == tensor
        if node.op_type == "Add":
            shift = shift + step
        elif node.op_type == "Sub":
            factor, shift = (factor, shift - step) if first else (-factor, step - shift)
        elif node.op_type == "Mul":
            factor, shift = factor * step, shift * step
        elif first:
            factor, shift = factor / step, shift / step
        else:
            break
        count, tensor = count + 1, node.output[0]
    if not count or (factor <= 0).any():
        return None
    factor, shift = np.broadcast_arrays(factor, shift)
    mean, std = -shift / factor + 0.0, 1 / factor
    large = mean.max() > LARGEST_MEAN or np.abs(255 * factor + shift).max() < LARGEST_SCALED
    scale, slack = (255, 2.55) if large else (1, 0.01)
    is_idle = np.allclose(factor, 1) and np.allclose(shift, 0, atol=slack)
    if is_idle or mean.min() < -slack or mean.max() > scale + slack or std.max() > scale + slack:
        return None
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)), scale, count)


def _per_channel(value: NDArray[Any]) -> NDArray[np.float64] | None:
    """A constant as one number, or one for each channel; None where it is neither."""
    if value.size == 1:
        return value.astype(np.float64).reshape(1)
    shape = (1,) * (4 - value.ndim) + value.shape
    return value.astype(np.float64).ravel() if value.ndim <= 4 and shape[1] == value.size else None
