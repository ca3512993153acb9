"""Find out how a stranger's file is fed and what it gives; refuse what is no classifier or backbone of images."""

from __future__ import annotations

from typing import Literal, NamedTuple

import onnx
from onnx import TensorProto, helper

from exporter.graph.facts import subgraphs, type_name
from exporter.graph.intake.plain import drops
from exporter.graph.intake.wiring import Wiring, attributes_of
from runtimes.errors import BadInput
from runtimes.specs import LARGEST_BATCH

TO_NCHW = (0, 3, 1, 2)
"""The axes of (batch, height, width, channels) in the order (batch, channels, height, width)."""
POINTWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Cast",
    "Identity",
    "Relu",
    "Clip",
    "Pad",
    "QuantizeLinear",
    "DequantizeLinear",
)
"""Operators that may stand between an input of (batch, height, width, channels) and the Transpose behind it."""
MOST_CHANNELS = 4
"""Of a picture: a last size of as many or fewer, behind a larger second one, is that of the channels."""
LARGEST_SIZE = LARGEST_BATCH
"""Of the batch, the channels and both sides."""
CONTROL_FLOW = ("If", "Loop", "Scan")
BY_CHANCE = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
CHOOSES = ("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Hardmax")
"""Operators whose result is no score."""
NOT_TENSORS = ("Sequence", "Optional", "String", "ConcatFromSequence", "SplitToSequence")
PLAIN_DOMAINS = ("", "ai.onnx")
QUANTIZED_DOMAIN = "com.microsoft"
QUANTIZED = ("QLinear", "QGemm", "QuantizeLinear", "DequantizeLinear")
"""How the names of onnxruntime's quantized operators begin: they are read as pairs."""


class ImageInput(NamedTuple):
    """A file's one input.

    Attributes:
        batch: its size; None where it is free.
        channels: None where they are free.
        size: (height, width) in pixels; None where one of them is free.
    """

    name: str
    layout: Literal["nchw", "nhwc"]
    batch: int | None
    channels: int | None
    size: tuple[int, int] | None


def image_input(model: onnx.ModelProto, where: str) -> ImageInput:
    """How a model is fed. A Reshape of one channel from the last place to the first becomes a Transpose, in place.

    Raises:
        BadInput: it takes something else than one batch of images in float32, or does something that no classifier or
            backbone of images does; names the input or the node.
    """
    graph, wiring = model.graph, Wiring(model.graph)
    for node in graph.node:
        _check_node(node, wiring, where)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(f"'{value.name}'" for value in inputs) or "none"
        raise BadInput(f"{where}: expected a network with one input, an image, got {names}; give a classifier's file")
    value = inputs[0]
    kind, sizes = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
    if kind != TensorProto.FLOAT:
        raise BadInput(
            f"{where}: expected an input of FLOAT, got '{value.name}' of {type_name(kind)}; save the network in FP32, "
            "with its preprocessing left out"
        )
    if len(sizes) != 4:
        raise BadInput(
            f"{where}: expected an input of four dimensions, as a batch of images has, got '{value.name}' of "
            f"{len(sizes)}; give a classifier's file"
        )
    found = [int(size.dim_value) if size.HasField("dim_value") and size.dim_value >= 0 else None for size in sizes]
    if not all(size is None or 0 < size <= LARGEST_SIZE for size in found):
        shape = "x".join("?" if size is None else str(size) for size in found)
        raise BadInput(
            f"{where}: expected sizes from 1 to {LARGEST_SIZE:,}, got '{value.name}' of {shape}; save the file again"
        )
    _use_transpose(graph, wiring, value)
    layout = layout_of(wiring, value.name)
    batch, *rest = found
    channels, *size = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
    height, width = size
    if layout == "nchw" and (channels or 0) > MOST_CHANNELS >= (width or MOST_CHANNELS + 1):
        raise BadInput(
            f"{where}: expected an input of (batch, channels, height, width), or a Transpose to it that alone reads an "
            f"input of (batch, height, width, channels), got '{value.name}' of "
            f"{'x'.join('?' if size is None else str(size) for size in found)}; save it with the channels first"
        )
    known = None if height is None or width is None else (height, width)
    return ImageInput(value.name, layout, batch, channels or _channels(graph), known)


def _use_transpose(graph: onnx.GraphProto, wiring: Wiring, value: onnx.ValueInfoProto) -> None:
    """Write a Reshape of (batch, height, width, 1) to (batch, 1, height, width), as tf2onnx has it, as a Transpose."""
    _, height, width, channels = (int(size.dim_value) for size in value.type.tensor_type.shape.dim)
    node = _behind_input(wiring, value.name)
    if min(height, width) < 1 or channels != 1 or node is None or node.op_type != "Reshape":
        return
    target = wiring.value(node.input[1])
    if target is not None and target.size == 4 and target.ravel()[1:].tolist() == [1, height, width]:
        node.CopyFrom(helper.make_node("Transpose", node.input[:1], node.output, name=node.name, perm=TO_NCHW))


def _behind_input(wiring: Wiring, name: str) -> onnx.NodeProto | None:
    """The first node behind an input that does not work on every pixel alike."""
    node = wiring.only_user(name)
    while node is not None and node.op_type in POINTWISE and node.output:
        node = wiring.only_user(node.output[0])
    return node


def layout_of(wiring: Wiring, name: str) -> Literal["nchw", "nhwc"]:
    """The layout of an input, as what first changes the order of its axes tells."""
    node = _behind_input(wiring, name)
    if node is None or node.op_type != "Transpose":
        return "nchw"
    return "nhwc" if tuple(attributes_of(node).get("perm", ())) == TO_NCHW else "nchw"


def _channels(graph: onnx.GraphProto) -> int | None:
    """The channels that the first convolution reads."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    first = next((node for node in graph.node if node.op_type == "Conv" and node.input[1] in shapes), None)
    if first is None:
        return None
    return int(shapes[first.input[1]][1] * attributes_of(first).get("group", 1))


def _check_node(node: onnx.NodeProto, wiring: Wiring, where: str) -> None:
    """Refuse a node that has no place in a network of images.

    Raises:
        BadInput: names it.
    """
    label, kind = f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'", node.op_type
    why = ""
    if node.domain not in PLAIN_DOMAINS and not (node.domain == QUANTIZED_DOMAIN and kind.startswith(QUANTIZED)):
        why = f"of {node.domain}, which is not ONNX's own; save the network without it, before any tool optimised it"
    elif kind in CONTROL_FLOW or any(subgraphs(node)):
        why = "which chooses or repeats a part of the network; save the network with that choice made"
    elif kind.startswith(NOT_TENSORS):
        why = "which is about lists or texts; save the network alone, without what is around it"
    elif kind in BY_CHANCE or drops(node, wiring):
        why = "which answers by chance; save the network in evaluation mode"
    elif kind == "BatchNormalization" and (attributes_of(node).get("training_mode") or len(node.output) > 1):
        why = "in training mode, so that an answer depends on the other images; save the network in evaluation mode"
    if why:
        raise BadInput(f"{where}: expected a network of images in ONNX's own operators, got {label} {why}")


def check_scores(graph: onnx.GraphProto, where: str) -> None:
    """Refuse outputs that are classes already, no float32 at all, not computed, or there twice.

    Raises:
        BadInput: names the output, and the node that makes it.
    """
    makers, names = Wiring(graph).makers, [value.name for value in graph.output]
    if not names or len(set(names)) < len(names):
        got = ", ".join(f"'{name}'" for name in names) or "none"
        raise BadInput(f"{where}: expected outputs, each of its own name, got {got}; save the file again")
    for value in graph.output:
        if value.name not in makers:
            raise BadInput(
                f"{where}: expected outputs that the network computes, got '{value.name}', which is its input or a "
                "constant; save the network without it"
            )
        node = makers.get(value.name)
        while node is not None and node.op_type in ("Identity", "Cast", "Squeeze", "Reshape", "Flatten"):
            node = makers.get(node.input[0])
        if node is not None and node.op_type in CHOOSES:
            raise BadInput(
                f"{where}: expected scores, got '{value.name}', which {node.op_type} '{node.name}' makes: the class is "
                "chosen already, and nothing can be compared; save the network without it"
            )
        kind = value.type.tensor_type.elem_type
        if kind not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            raise BadInput(
                f"{where}: expected outputs of FLOAT, got '{value.name}' of {type_name(kind)}; save the network in FP32"
            )
