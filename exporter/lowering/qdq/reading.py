"""Find the types that each convolution reads: INT8 where TensorRT carries the quantization of a tensor to it.

Every rule here was measured: TensorRT-RTX's builder logs the types that each of its kernels reads, and
`tests/lowering/test_lint_judged.py` compares this module with it. TensorRT itself is known to want scales of
activations per tensor and of weights per output channel, to move DequantizeLinear past operators that only move values,
and to compute everything else in float (NVIDIA, "Working with Quantized Types").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from exporter.lowering.qdq.view import DEQUANTIZE, UNKNOWN, View, int_attribute, node_label

FLOAT, PER_TENSOR = "float", -1
SINGLE = ("FLOAT", "DOUBLE")
CASTS = ("Cast", "CastLike")
# fmt: off
MOVES = (
    "Identity", "Dropout", *CASTS, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split",
    "Expand", "Tile", "MaxPool", "GlobalMaxPool",
)
"""Operators that move values, or take the largest of them: DequantizeLinear may be moved behind them."""
MOVES_ACTIVATIONS = ("Gather", "GatherElements", "DepthToSpace", "SpaceToDepth", "Neg", "Abs")
MOVES_WEIGHTS_PER_TENSOR = ("Gather", "Neg")
# fmt: on
POOLS = ("MaxPool", "GlobalMaxPool")
SCALES = ("Mul", "Div")
JOINS = ("Concat", "Max", "Min", "Where")
"""Operators that carry quantization if all their inputs have the same scale."""


@dataclass(frozen=True)
class Reading:
    """How a convolution reads a tensor.

    Attributes:
        type: INT8, FLOAT8E4M3FN ... if the convolution can read that; `float` if it cannot; `?` if it is not known.
        reason: why it cannot, for messages; empty otherwise.
        rule: the id of the rule that says so.
        axis: the axis that the scales belong to; -1 for one scale.
        scale: the name of the scales' tensor.
        pooled: whether a pool is between the tensor and its pair.
    """

    type: str
    reason: str = ""
    rule: str = ""
    axis: int = PER_TENSOR
    scale: str = ""
    pooled: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the type is known and not float."""
        return self.type not in (FLOAT, UNKNOWN)


class Readings:
    """How convolutions read the tensors of a graph; nodes must be in topological order."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._activations: dict[str, Reading] = {}
        self._weights: dict[str, Reading] = {}
        for node in view.nodes:
            for found, weight in ((self._activations, False), (self._weights, True)):
                reading = _reading_of_output(view, found, node, weight=weight)
                found.update((name, reading) for name in node.output if name)

    def of_input(self, name: str) -> Reading:
        """How a convolution reads an activation."""
        found = self._activations.get(name, Reading(FLOAT))
        if not found.is_quantized:
            return found
        shape = self.view.shape(found.scale)
        if shape is None:
            return Reading(UNKNOWN, f"how many scales '{found.scale}' has is not known", "RE220")
        if len(shape) == 0:
            return found
        if shape == (1,):
            return Reading(
                FLOAT,
                f"its input's scale '{found.scale}' is a list of one number, taken as per channel; make it a scalar",
                "RE204",
            )
        return Reading(FLOAT, "its input is quantized per channel; quantize activations per tensor", "RE203")

    def of_weight(self, name: str) -> Reading:
        """How a convolution reads its weight."""
        found = self._weights.get(name, Reading(FLOAT))
        if found.is_quantized and found.axis not in (PER_TENSOR, 0):
            return Reading(
                FLOAT,
                f"its weight's scales belong to axis {found.axis}; quantize along the output channels, axis 0",
                "RE205",
            )
        return found

    def is_quantized(self, name: str) -> bool:
        """Whether a tensor comes from a DequantizeLinear, directly or moved, whatever its scales."""
        return self._activations.get(name, Reading(FLOAT)).is_quantized

    def is_dequantized(self, name: str) -> bool:
        """As `is_quantized`, but false for pooled tensors, which have no pair of their own for an addition."""
        return self.is_quantized(name) and not self._activations[name].pooled


def _reading_of_output(view: View, found: Mapping[str, Reading], node: onnx.NodeProto, *, weight: bool) -> Reading:
    """The reading of a node's outputs, from those of its inputs."""
    if not node.input:
        return Reading(FLOAT)
    if node.op_type == DEQUANTIZE:
        return _reading_of_dequantize(view, node)
    if node.op_type in JOINS and not weight:
        return _reading_of_join(view, found, node)
    place = _carried_place(view, found, node, weight=weight)
    if place is None:
        behind = bool(node.input) and found.get(node.input[0], Reading(FLOAT)).is_quantized
        return Reading(
            FLOAT,
            f"{node_label(node)} ({node.op_type}) computes in float between it and its pair" if behind else "",
            "RE202" if behind else "",
        )
    source = found.get(node.input[place], Reading(FLOAT))
    return _carry_over(view, node, place, source, weight=weight) if source.is_quantized else source


def _reading_of_dequantize(view: View, node: onnx.NodeProto) -> Reading:
    """The reading of a DequantizeLinear's output."""
    kind, scale = view.type(node.input[0]), node.input[1]
    if int_attribute(node, "block_size", 0):
        return Reading(FLOAT, "it is quantized in blocks, which convolutions read in float", "RE208")
    source = view.producer(scale)
    if source is not None and source.op_type == DEQUANTIZE:
        return Reading(FLOAT, "its scale is quantized itself; write the number", "RE209")
    if kind == "UINT8":
        kind = "INT8"  # anything else is refused
    shape = view.shape(scale)
    axis = PER_TENSOR
    if shape is not None and (None in shape or math.prod(size or 0 for size in shape) != 1):
        rank = len(view.shape(node.input[0]) or ())
        axis = int_attribute(node, "axis", 1)
        axis += rank if axis < 0 else 0
    return Reading(kind, axis=axis, scale=scale)


def _reading_of_join(view: View, found: Mapping[str, Reading], node: onnx.NodeProto) -> Reading:
    """The reading of a join's output: quantized if all its inputs are, by the same scale."""
    parts = [found.get(one, Reading(FLOAT)) for one in list(node.input)[1 if node.op_type == "Where" else 0 :]]
    values = [view.constants.value(part.scale) if part.is_quantized else None for part in parts]
    floats = [part for part in parts if not part.is_quantized]
    if floats:
        return Reading(
            FLOAT,
            f"{node_label(node)} ({node.op_type}) joins quantized tensors and others"
            if len(floats) < len(parts)
            else "",
            "RE207" if len(floats) < len(parts) else "",
        )
    first = values[0]
    if len({part.scale for part in parts}) > 1:
        if any(value is None for value in values) or first is None:
            return Reading(UNKNOWN, f"whether what {node_label(node)} joins has one scale is not known", "RE220")
        if any(value is None or value.shape != first.shape or (value != first).any() for value in values):
            return Reading(
                FLOAT, f"{node_label(node)} ({node.op_type}) joins tensors of different scales; give them one", "RE206"
            )
    return parts[0]


def _carried_place(view: View, found: Mapping[str, Reading], node: onnx.NodeProto, *, weight: bool) -> int | None:
    """The place of the input whose quantization a node carries to its output; None if the node computes in float."""
    if node.op_type in MOVES or node.op_type in (MOVES_WEIGHTS_PER_TENSOR if weight else MOVES_ACTIVATIONS):
        return 0
    if node.op_type == "Pad" and not weight:
        value = view.constants.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        is_other = len(node.input) > 2 and bool(node.input[2]) and (value is None or bool(value.any()))
        return None if is_other else 0
    if node.op_type in SCALES:
        constant = [
            place
            for place, one in enumerate(node.input)
            if one in view.constants.names and not found.get(one, Reading(FLOAT)).is_quantized
        ]
        if constant == [1] or (constant == [0] and node.op_type == "Mul"):
            return 1 - constant[0]
    return None


def _carry_over(view: View, node: onnx.NodeProto, place: int, source: Reading, *, weight: bool) -> Reading:
    """The reading of `source` behind a node that carries it: its axis may have moved, or be lost."""
    lost = Reading(
        FLOAT,
        f"{node_label(node)} ({node.op_type}) between it and its pair leaves no scale per output channel",
        "RE211",
    )
    if node.op_type in CASTS:
        before, after = view.type(node.input[0]), view.type(node.output[0])
        if before == after or (before in SINGLE and after in (*SINGLE, "FLOAT16", "BFLOAT16")):
            return source
        return Reading(
            FLOAT,
            f"{node_label(node)} (Cast) from {before} to {after} stands between it and its pair; "
            "cast once, from FP32 down",
            "RE210",
        )
    if node.op_type in SCALES:
        shape = view.shape(node.input[1 - place])
        per_channel = _varying_axes(shape or (), len(view.shape(node.input[place]) or ()))
        if shape is None:
            return Reading(UNKNOWN, f"what {node_label(node)} multiplies by is not known", "RE220")
        if not per_channel:
            return source
        is_same = weight and len(per_channel) == 1 and source.axis in (PER_TENSOR, *per_channel)
        return replace(source, axis=per_channel[0]) if is_same else lost
    if node.op_type in POOLS:
        source = replace(source, pooled=True)
    if source.axis == PER_TENSOR:
        return source
    if node.op_type in MOVES_WEIGHTS_PER_TENSOR and weight:
        return lost
    axis = _moved_axis(view, node, source.axis)
    return lost if axis is None else replace(source, axis=axis)


def _varying_axes(shape: tuple[int | None, ...], rank: int) -> list[int]:
    """The axes of a tensor of `rank` along which numbers of `shape`, broadcast to it, differ."""
    return [rank - len(shape) + place for place, size in enumerate(shape) if size != 1]


def _moved_axis(view: View, node: onnx.NodeProto, axis: int) -> int | None:
    """The place of an axis behind a node; None if it is no axis of the output."""
    if node.op_type == "Transpose":
        rank = len(view.shape(node.input[0]) or ())
        order = next((list(one.ints) for one in node.attribute if one.name == "perm"), list(range(rank))[::-1])
        return order.index(axis) if axis in order else None
    if node.op_type not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return axis
    before, after = view.shape(node.input[0]), view.shape(node.output[0])
    if before is None or after is None or None in before or None in after or axis >= len(before):
        return None
    ahead = math.prod(size or 0 for size in before[:axis])
    same = [
        place
        for place, size in enumerate(after)
        if size == before[axis] and math.prod(one or 0 for one in after[:place]) == ahead
    ]
    return same[-1] if same else None
