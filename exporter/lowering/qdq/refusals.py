"""Find what TensorRT's parser and builder refuse in a quantized graph, and where they compute other values than ONNX.

Every rule was tried on TensorRT-RTX 1.7, whose parser gives the same messages as TensorRT's;
`tests/lowering/test_lint_judged.py` tries them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from exporter.lowering.lint.findings import Finding, Problem, findings_at
from exporter.lowering.lint.operators import operator_problems
from exporter.lowering.qdq.reading import Reading, Readings
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, UNKNOWN, View, int_attribute, node_label

# fmt: off
UNSUPPORTED = frozenset({
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv", "Det",
    "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
    "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
    "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat",
    "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
})
"""ONNX operators that the parser does not support."""
PLUGINS = frozenset({"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"})
"""Those that TensorRT has as plugins, and TensorRT-RTX does not have."""
UNREAD = (
    "INT16", "UINT16", "UINT32", "UINT64", "UINT4", "INT2", "UINT2", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E4M3FNUZ",
    "FLOAT8E8M0", "STRING", "COMPLEX64", "COMPLEX128",
)
"""Types of which the parser reads no constants."""
STORED_QUANTIZED = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
"""Types whose constants only DequantizeLinear may read."""
SCALES_FOLDED = frozenset({
    "Constant", "ConstantOfShape", "Identity", "Dropout", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze",
    "Transpose", "Expand", "Slice", "Gather", "Concat", "Where", "Equal", "Shape", "Clip", "Add", "Sub", "Mul", "Div",
    "Max", "Min", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Sin", "ReduceProd", QUANTIZE,
    DEQUANTIZE,
})
"""Operators that may compute a scale from constants."""
SCALES_NOT_FOLDED = frozenset({
    "ReduceMax", "ReduceMean", "Pow", "Round", "Sigmoid", "Relu", "Tanh", "Softplus", "Erf", "MatMul", "TopK",
})
"""Operators on which the parser crashes (1.7.1) if they compute a scale."""
ZERO_POINTS_FOLDED = frozenset({
    "Constant", "Identity", "Cast", "CastLike", "Reshape", "Round", "Floor", "Ceil", "Relu", "Abs", "Neg", "Clip",
})
ONE_TYPE = frozenset({
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu", "Greater", "Less", "GreaterOrEqual",
    "LessOrEqual", "Equal", "MatMul", "Gemm", "Conv", "ConvTranspose", "Concat", "Where", "Mod", "LayerNormalization",
    "InstanceNormalization", "GroupNormalization",
})
"""Operators whose inputs must have the same type for TensorRT."""
# fmt: on
PLAIN_DOMAINS = ("", "ai.onnx")
FIXED = "write it as a number into an initializer (onnxsim folds what can be folded)"


def refusals(view: View, readings: Readings, place: int) -> Iterator[Finding]:
    """What TensorRT refuses or computes otherwise at a node, or what cannot be told."""
    node = view.nodes[place]
    yield from findings_at(place, node, _problems(view, readings, node))


def _problems(view: View, readings: Readings, node: onnx.NodeProto) -> Iterator[Problem]:
    is_pair = node.op_type in (QUANTIZE, DEQUANTIZE)
    if (node.domain, node.op_type) in view.functions:
        yield "RE127", f"the local function {node.op_type} is of another opset than the file; save it with one opset"
        return
    if node.op_type in UNSUPPORTED | PLUGINS or (node.domain not in PLAIN_DOMAINS and not is_pair):
        remedy = (
            "quantize to Q/DQ format" if "Q" in node.op_type or "Integer" in node.op_type else "it would need a plugin"
        )
        number = "RE102" if node.domain not in PLAIN_DOMAINS else "RE138" if node.op_type in PLUGINS else "RE101"
        yield number, f"{node.op_type}{f' of {node.domain}' if node.domain else ''} is not supported; {remedy}"
        return
    yield from operator_problems(view, node)
    if node.op_type == "Cast" and view.type(node.output[0]) in UNREAD:
        yield "RE134", f"it casts to {view.type(node.output[0])}, which TensorRT does not have; take another type"
    for name in dict.fromkeys(node.input):
        stored = view.constants.tensor(name)
        if stored is not None and view.type(name) in UNREAD:
            yield "RE103", f"'{name}' is {view.type(name)}, which TensorRT does not read; quantize to INT8"
            return
        is_bound = node.op_type == "Clip" and name != node.input[0]
        if stored is None or is_pair or is_bound or view.type(name) not in STORED_QUANTIZED:
            continue
        if not _ends_as_zero_point(view, node):
            yield (
                "RE104",
                f"it reads '{name}', stored as {view.type(name)}: "
                "between such a constant and its DequantizeLinear nothing may stand",
            )
    if is_pair:
        yield from _check_pair(view, node)
    if node.op_type in ONE_TYPE:
        yield from _check_types(view, node)
    if node.op_type in ("Conv", "ConvTranspose"):
        yield from _check_convolution(view, readings, node)


def _ends_as_zero_point(view: View, node: onnx.NodeProto) -> bool:
    """Whether a node passes a zero point on, and its output is used as nothing else."""
    if node.op_type not in ("Identity", "Cast", "CastLike"):
        return False
    users = view.users(node.output[0])
    return bool(users) and all(
        (user.op_type in (QUANTIZE, DEQUANTIZE) and node.output[0] not in list(user.input)[:2])
        or _ends_as_zero_point(view, user)
        for user in users
    )


def _check_types(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    names = list(node.input)[1:] if node.op_type == "Where" else list(node.input)
    types = {"FLOAT" if view.type(name) == "DOUBLE" else view.type(name) for name in names if name} - {UNKNOWN}
    if len(types) > 1:
        what = "input, weight and bias" if "Conv" in node.op_type or node.op_type == "Gemm" else "they"
        yield "RE301", f"its inputs are {' and '.join(sorted(types))}; {what} must share one type"


def _check_convolution(view: View, readings: Readings, node: onnx.NodeProto) -> Iterator[Problem]:
    source = view.producer(node.input[1])
    if source is not None and source.op_type == "Concat" and any(readings.is_quantized(name) for name in source.input):
        yield "RE122", f"its weight is joined by {node_label(source)} behind DequantizeLinear; join before quantizing"
    both: tuple[Reading, Reading] = (readings.of_input(node.input[0]), readings.of_weight(node.input[1]))
    if all(one.is_quantized for one in both) and (both[0].type != both[1].type or both[0].type == "INT4"):
        types = " and ".join(dict.fromkeys(one.type for one in both))
        yield (
            "RE123",
            f"its input and weight are quantized to {types}, of which there is no convolution; quantize both to INT8",
        )


def _check_pair(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    kind = view.quantized_type(node) if node.op_type == QUANTIZE else view.type(node.input[0])
    if node.op_type == DEQUANTIZE and kind == "INT32":
        yield "RE105", f"'{node.input[0]}' is INT32 (a quantized bias); leave biases in float"
    elif node.op_type == DEQUANTIZE and kind == "UINT8" and not _is_from_quantize(view, node.input[0]):
        yield "RE106", f"'{node.input[0]}' is UINT8, and no QuantizeLinear made it; quantize to INT8"
    elif kind in UNREAD:
        yield "RE107", f"it quantizes to {kind}, which TensorRT does not have; quantize to INT8"
    elif node.op_type == QUANTIZE and kind == "UINT8":
        yield from _check_unsigned(view, node)
    elif kind.startswith(("FLOAT8", "FLOAT4")):
        yield (
            "RE124",
            f"{kind} needs a GPU that has it: FP8 from sm89 on, FP4 from sm100 on; older ones refuse the graph",
        )
    if (
        node.op_type == DEQUANTIZE
        and view.constants.tensor(node.input[0]) is not None
        and view.shape(node.input[0]) == ()
    ):
        yield "RE110", f"'{node.input[0]}' is a scalar; give it an axis"
    yield from _check_scale(view, node)
    yield from _check_zero_point(view, node)
    yield from _check_sizes(view, node)


def _check_unsigned(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    has_zero_point = len(node.input) > 2 and bool(node.input[2])
    value = view.constants.value(node.input[2]) if has_zero_point else None
    if value is not None and np.any(value):
        return  # refused, as a zero point that is not zero
    if not has_zero_point and int_attribute(node, "output_dtype", 0):
        yield "RE108", "it quantizes to UINT8; quantize to INT8"
        return
    says = "it quantizes to UINT8" if has_zero_point else "it has no zero point, so ONNX quantizes to UINT8"
    yield (
        "RE109",
        f"{says}, and TensorRT to INT8: what is above 127 steps is cut off; quantize symmetrically to INT8",
    )


def _is_from_quantize(view: View, name: str) -> bool:
    node = view.maker(name)
    while node is not None and node.op_type != QUANTIZE and node.op_type not in ("Cast", "Constant") and node.input:
        node = view.maker(node.input[0])
    return node is not None and node.op_type == QUANTIZE


def _check_scale(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    name = node.input[1]
    by = _operators_before(view, name)
    if name not in view.constants.names and by & {"Shape", "Size"}:
        yield "RE125", f"scale '{name}' is computed of sizes; {FIXED}"
        return
    if name not in view.constants.names:
        yield "RE111", f"scale '{name}' is computed at run time; calibrate, and {FIXED}"
        return
    if by & SCALES_NOT_FOLDED:
        yield "RE112", f"scale '{name}' is computed by {', '.join(sorted(by & SCALES_NOT_FOLDED))}; {FIXED}"
        return
    value = view.constants.value(name)
    if by - SCALES_FOLDED or value is None:
        yield "RE125", f"what scale '{name}' is{_computed_by_text(by - SCALES_FOLDED)} cannot be told here; {FIXED}"
    elif not np.all(value.astype(np.float32) > 0):
        is_seen = view.constants.tensor(name) is not None
        unseen = "" if is_seen else ", which TensorRT-RTX does not notice where it is computed"
        yield ("RE113" if is_seen else "RE114"), f"scale '{name}' is not positive{unseen}; calibrate again"


def _check_zero_point(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    if len(node.input) < 3:
        return
    name = node.input[2]
    if not name:
        yield "RE116", "its zero point is an empty name; leave it out"
        return
    by = _operators_before(view, name)
    if name not in view.constants.names or by - ZERO_POINTS_FOLDED:
        when = _computed_by_text(by - ZERO_POINTS_FOLDED) or " at run time"
        yield "RE117", f"zero point '{name}' is computed{when.removeprefix(', computed')}; {FIXED}"
        return
    if view.type(name) == "UINT8" and view.constants.tensor(name) is None and by - {"Identity"}:
        yield "RE118", f"zero point '{name}' becomes UINT8 in the graph; quantize symmetrically to INT8"
        return
    value = view.constants.value(name)
    if value is None:
        yield "RE126", f"what zero point '{name}' is cannot be told here; {FIXED}"
    elif np.any(value.astype(np.float32)):
        yield "RE115", f"zero point '{name}' is not zero; quantize symmetrically to INT8"


def _check_sizes(view: View, node: onnx.NodeProto) -> Iterator[Problem]:
    """Check that there is a scale for each channel, and a zero point for each scale."""
    scale, shape = view.shape(node.input[1]), view.shape(node.input[0])
    if scale is None or None in scale:
        return
    count = math.prod(size or 0 for size in scale)
    zero_point = view.shape(node.input[2]) if len(node.input) > 2 and node.input[2] else scale
    if zero_point is not None and None not in zero_point and math.prod(size or 0 for size in zero_point) != count:
        yield (
            "RE119",
            f"it has {count} scales and {math.prod(size or 0 for size in zero_point)} zero points; "
            "give it as many of the one as of the other",
        )
    if shape is None:
        return
    axis = int_attribute(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    if int_attribute(node, "block_size", 0):
        if axis < len(shape) - 2:
            yield (
                "RE121",
                f"it is quantized in blocks along axis {axis}; TensorRT has blocks along the last two axes alone",
            )
    elif len(scale) > 1:
        yield "RE120", f"its scales have {len(scale)} axes; give it one, or one for each channel"
    elif count > 1 and not 0 <= axis < len(shape):
        yield "RE120", f"its axis is {axis}, and '{node.input[0]}' has {len(shape)}; quantize along the channels"
    elif count > 1 and shape[axis] not in (None, count):
        yield "RE120", f"it has {count} scales for {shape[axis]} channels; give it one, or one for each"


def _operators_before(view: View, name: str) -> set[str]:
    """All operators that compute a tensor, however far back."""
    found, waiting, seen = set(), [name], {name}
    while waiting:
        node = view.maker(waiting.pop())
        if node is not None:
            found.add(str(node.op_type))
            more = [one for one in node.input if one and one not in seen]
            seen.update(more)
            waiting += more
    return found


def _computed_by_text(operators: set[str]) -> str:
    return f", computed by {', '.join(sorted(operators))}," if operators else ""
