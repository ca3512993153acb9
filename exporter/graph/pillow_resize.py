"""Put resizing and cropping into the graph, bit for bit as `Preprocess.pixels` does them outside it with Pillow.

Pillow resizes one axis after the other. A new pixel is a sum of old ones times coefficients. Each coefficient is the
filter's value at the distance of the two pixels, divided by the sum of all, and rounded to 2**-22; each pass rounds to
whole levels (src/libImaging/Resample.c). ONNX's Resize rounds differently, and TensorRT's parser refuses it with
antialias. So the graph computes Pillow's coefficients from the picture's shape, and applies them with two matrix
products. It computes only the rows and columns that the crop keeps; where the crop reaches over the border they are
zeros, that is black.

- Distances, and the values of both filters, are whole numbers once they are multiplied by twice the sizes. 64-bit
  integers hold them, so that the coefficients are exactly Pillow's. (The cubic filter's values are third powers of
  sizes: from 8192 pixels on they are computed from coarser distances.)
- A coefficient of 22 bits times a level of 8 bits is more than single precision holds, and TensorRT has no double. So
  each coefficient is split into a high part of 10 bits and a low part of 12. Their products with levels, and the sums
  over up to 32 taps, are whole numbers up to 2**24: exact in whatever order they are summed, and in TF32 too.

All pictures of a batch have the same size. If the shorter side is resized to N, the longer one keeps its ratio to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.pixel_input import CAST, TRANSPOSE
from runtimes.errors import PlanError
from runtimes.preprocess import MODES, Preprocess
from runtimes.specs import PICTURE

PREFIX = "pixels.resize"
BITS, LOW_BITS = 22, 12
HIGH_BITS = BITS - LOW_BITS
FINEST_SIDE, FINEST_WORK = 13, 19
"""Powers of two: up to such a side, and such a product of side and scale, `_quotient` of the cubic filter's values fits
into 63 bits."""
IR_VERSION = 10


class Writer:
    """The nodes and constants of a graph, in the order they are written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def node(self, operator: str, *operands: Operand, **attributes: Any) -> Value:
        """Append a node; numbers and arrays among its operands become constants."""
        name = f"{PREFIX}.{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(
                operator, [self._name(operand) for operand in operands], [f"{name}.out"], name=name, **attributes
            )
        )
        return Value(self, f"{name}.out")

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return operand.name
        array = np.asarray(operand)
        name = f"{PREFIX}.{operand}" if array.ndim == 0 else f"{PREFIX}.constant_{len(self.constants)}"
        self.constants.setdefault(
            name, numpy_helper.from_array(array.astype(np.int64 if array.dtype.kind == "i" else np.float32), name)
        )
        return name


@dataclass(frozen=True)
class Value:
    """A tensor of the graph that a writer writes.

    Arithmetic with it appends nodes; `//` divides whole numbers and rounds towards zero.
    """

    writer: Writer
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.writer.node("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.writer.node("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.writer.node("Mul", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        return self.writer.node("Div", self, other)

    def __matmul__(self, other: Value) -> Value:
        return self.writer.node("MatMul", self, other)

    def at_least(self, other: Operand) -> Value:
        return self.writer.node("Max", self, other)


Operand = Value | int | float | NDArray[Any]


def check_resizable(preprocess: Preprocess) -> None:
    """Check that the graph can do a preprocessing's resize.

    Raises:
        PlanError: it cannot: not for this interpolation, or not for this number of channels.
    """
    instead = "take --uint8-input without full, and resize outside"
    if preprocess.channels not in MODES:
        raise PlanError(
            f"--uint8-input full takes pictures, of 1 or 3 channels, and the model has {preprocess.channels}; {instead}"
        )
    if preprocess.resize is not None and (preprocess.interpolation not in FILTERS or not preprocess.antialias):
        found = preprocess.interpolation if preprocess.antialias else f"{preprocess.interpolation} without antialias"
        raise PlanError(
            f"--uint8-input full resizes {' or '.join(FILTERS)} with antialias, and the model wants {found}; {instead}"
        )


def with_any_size(model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """A copy of a graph made by `with_uint8_input` that takes pictures (batch, height, width, channels) of any size.

    The graph may be lowered already: the nodes in front of it compute in integers and FP32 for every precision, and
    every precision holds the 256 levels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (source,) = graph.input
    named = {node.name: node for node in graph.node}
    writer = Writer()
    planes = _planes(Value(writer, source.name), preprocess)
    last = onnx.NodeProto()
    last.CopyFrom(named[CAST])
    last.input[:], last.output[:] = [planes.name], named[TRANSPOSE].output
    nodes = [*writer.nodes, last, *(node for node in graph.node if node.name not in (CAST, TRANSPOSE))]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(writer.constants.values())
    shapes = [value for value in graph.value_info if value.name != named[CAST].output[0]]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    for dimension, name in zip(source.type.tensor_type.shape.dim[1:], PICTURE, strict=False):
        dimension.dim_param = name
    onnx.checker.check_model(result, full_check=True)
    return result


def resizing_graph(preprocess: Preprocess, opset: int) -> onnx.ModelProto:
    """The nodes that `with_any_size` puts in front, as a graph of their own.

    It takes uint8 (batch, height, width, channels) of any size and returns the crop's levels, whole numbers in float32
    (batch, channels, height, width).
    """
    writer = Writer()
    planes = _planes(Value(writer, "picture"), preprocess)
    source = helper.make_tensor_value_info("picture", TensorProto.UINT8, ["batch", *PICTURE, preprocess.channels])
    result = helper.make_tensor_value_info(planes.name, TensorProto.FLOAT, ["batch", *preprocess.shape])
    graph = helper.make_graph(writer.nodes, PREFIX, [source], [result], list(writer.constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def _planes(picture: Value, preprocess: Preprocess) -> Value:
    """Write the nodes that make the crop's levels, float32 (batch, channels, height, width), of a picture."""
    node = picture.writer.node
    sides = [node("Shape", picture, start=place, end=place + 1) for place in (1, 2)]
    targets = _targets(sides, preprocess)
    (rows, columns) = (
        _coefficients(side, target, crop, FILTERS.get(preprocess.interpolation, _triangle))
        for side, target, crop in zip(sides, targets, preprocess.crop, strict=True)
    )
    planes = node("Transpose", node("Cast", picture, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    planes = _round_to_levels(*(planes @ node("Transpose", part, perm=[1, 0]) for part in columns))
    return _round_to_levels(*(part @ planes for part in rows))


def _targets(sides: Sequence[Value], preprocess: Preprocess) -> Sequence[Value | NDArray[np.int64]]:
    """The resized height and width, each of shape (1,)."""
    if preprocess.resize is None:
        return sides
    if isinstance(preprocess.resize, tuple):
        return [np.array([size]) for size in preprocess.resize]
    height, width = sides
    shorter = height.writer.node("Min", height, width)
    return [side * preprocess.resize // shorter for side in sides]


def _coefficients(
    side: Value, target: Operand, crop: int, values: Callable[[Value, Value, Value], Value]
) -> tuple[Value, Value]:
    """The coefficients that resize `side` pixels to `target` and keep the `crop` in their centre.

    Returns:
        Their high and their low parts, each float32 (crop, side).
    """
    node = side.writer.node
    # Of the resized pixels, the first that is kept: Python's round() of half the rest, to even, or one before the
    # border.
    rest = node("Sub", target, crop).at_least(0)
    half = rest // 2
    first = half + (rest - half * 2) * (half - half // 2 * 2) - node("Sub", crop, target).at_least(0) // 2
    new = node("Add", np.arange(crop)[:, None], first)
    old = node("Range", 0, node("Squeeze", side, np.array([0])), 1)
    # Distance between the pixels' centres; the filter's argument is distance / reach.
    distance = node("Abs", (new * 2 + 1) * side - (old * 2 + 1) * target)
    reach = side.at_least(target) * 2
    inside = node("And", node("GreaterOrEqual", new, 0), node("Less", new, target))
    weights = node("Where", inside, values(distance, reach, side // target), 0)
    total = node("ReduceSum", weights, np.array([-1]), keepdims=1).at_least(1)
    high = _quotient(weights, total, HIGH_BITS)
    low = _quotient(weights * (1 << HIGH_BITS) - high * total, total, LOW_BITS)
    return node("Cast", high, to=TensorProto.FLOAT), node("Cast", low, to=TensorProto.FLOAT)


def _triangle(distance: Value, reach: Value, scale: Value) -> Value:
    """Pillow's bilinear filter, times `reach`."""
    return (reach - distance).at_least(0)


def _cubic(distance: Value, reach: Value, scale: Value) -> Value:
    """Pillow's bicubic filter (Keys' with a = -0.5), times 2 `reach`**3, written with truncated powers."""
    side = reach // 2
    coarse = side // (1 << FINEST_SIDE) + side * scale // (1 << FINEST_WORK) + 1
    distance, reach = distance // coarse, reach // coarse
    near, far = (reach - distance).at_least(0), (reach * 2 - distance).at_least(0)
    return (reach - distance) * (far * far) - near * near * 2 * (near * 2 - reach)


FILTERS: dict[str, Callable[[Value, Value, Value], Value]] = {"bilinear": _triangle, "bicubic": _cubic}


def _quotient(number: Value, total: Value, bits: int) -> Value:
    """`number` * 2**bits / `total`, rounded, for |number| <= total.

    The dividend is made positive, since ONNX's Div of integers rounds towards zero.
    """
    return (number * (2 << bits) + total * (1 + (2 << bits))) // (total * 2) - (1 << bits)


def _round_to_levels(high: Value, low: Value) -> Value:
    """The levels (high * 2**LOW_BITS + low) / 2**BITS, rounded and clipped as Pillow does.

    No number on the way is above 2**24, so that single precision holds them all.
    """
    node = high.writer.node
    high = high + float(1 << HIGH_BITS - 1)
    whole = node("Floor", high * 2.0**-HIGH_BITS)
    rest = high - whole * float(1 << HIGH_BITS)
    return node("Clip", whole + node("Floor", rest * 2.0**-HIGH_BITS + low * 2.0**-BITS), 0.0, 255.0)
