"""The Q/DQ linter against TensorRT-RTX, one convolution at a time: what it takes, and what the kernel reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import qdq_graphs as made
import tensorrt_rtx as trt
from lint_judge import held_against, judged
from onnx import TensorProto
from qdq_graphs import (
    HALF,
    INT8,
    PER_CHANNEL,
    ROWS,
    SIDE,
    STEP,
    UINT8,
    WIDTH,
    Graph,
    behind_weight,
    convolved,
    over,
    scale_by,
    within,
    zero_by,
)

from exporter.lowering.qdq.lint import lint
from exporter.lowering.qdq.refusals import ONE_TYPE, SCALES_FOLDED, SCALES_NOT_FOLDED, UNSUPPORTED, ZERO_POINTS_FOLDED
from runtimes.nvidia.log import log_of

ONES, ZEROS = np.ones((ROWS, WIDTH, 3, 3), np.int8), np.zeros(ROWS, np.int8)
AXES = np.array([0, 0, 1, 1, 0, 0, 1, 1])


def dq(graph: Graph, data: Any, scale: Any = STEP, *more: Any, **attributes: Any) -> str:
    return graph.node("DequantizeLinear", data, scale, *more, **attributes)


READS_INT8: dict[str, Callable[[], onnx.ModelProto]] = {
    "as it should be": convolved,
    "Constant nodes": partial(
        convolved,
        lambda g: g.pair("x", g.held(STEP), g.held(INT8)),
        lambda g: g.pair(g.held(np.ones((ROWS, WIDTH, 3, 3), np.float32)), g.held(PER_CHANNEL), g.held(ZEROS), axis=0),
    ),
    "no zero point but a type": partial(
        convolved, lambda g: dq(g, g.node("QuantizeLinear", "x", STEP, output_dtype=TensorProto.INT8))
    ),
    "stored input": partial(convolved, lambda g: dq(g, "x", STEP, INT8), takes=TensorProto.INT8),
    "scale divided": partial(convolved, scale_by(lambda g: g.node("Div", np.float32(6), np.float32(127)))),
    "scale cast and squeezed": partial(
        convolved, scale_by(lambda g: g.node("Squeeze", g.node("Cast", np.array([0.05]), to=made.FLOAT)))
    ),
    "zero point cast": partial(
        convolved, zero_by(lambda g: g.node("Identity", g.node("Cast", np.int32(0), to=TensorProto.INT8)))
    ),
    "zero point of one, scale of none": partial(convolved, lambda g: g.pair("x", zero=np.array([0], np.int8))),
    "of com.microsoft": partial(
        convolved,
        lambda g: g.node(
            "DequantizeLinear",
            g.node("QuantizeLinear", "x", STEP, INT8, domain="com.microsoft"),
            STEP,
            INT8,
            domain="com.microsoft",
        ),
    ),
    "opset 10": partial(convolved, None, lambda g: g.weight(axis=None), opset=10),
    "half": partial(convolved, made.half_pair, made.half_weight, takes=HALF, gives=HALF),
    "cast behind": partial(convolved, over("Cast", to=HALF), behind_weight("Cast", to=HALF), gives=HALF),
    "moved": partial(
        convolved,
        lambda g: g.node(
            "Transpose", g.node("Reshape", g.node("Identity", g.pair("x")), np.array([1, 16, 4, 16])), perm=[0, 1, 3, 2]
        ),
    ),
    "pooled": partial(convolved, over("MaxPool", kernel_shape=[2, 2])),
    "padded": partial(convolved, over("Pad", AXES)),
    "sliced": partial(convolved, over("Slice", np.array([0]), np.array([4]), np.array([2]))),
    "doubled": partial(convolved, over("Mul", np.float32(2))),
    "joined": partial(convolved, made.joined(STEP, STEP)),
    "pooled within": partial(convolved, within("MaxPool", kernel_shape=[2, 2])),
    "quantized twice": partial(convolved, lambda g: g.pair(g.pair("x"), np.float32(0.1))),
    "weight per tensor": partial(convolved, None, lambda g: g.weight(axis=None)),
    "weight's axis from behind": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL, axis=-4)),
    "weight quantized in the graph": partial(
        convolved,
        None,
        lambda g: g.pair(
            g.node("Transpose", g.floats(3, 3, WIDTH, ROWS), perm=[3, 2, 0, 1]), PER_CHANNEL, ZEROS, axis=0
        ),
    ),
    "weight transposed": partial(
        convolved, None, behind_weight("Transpose", axis=3, shape=(3, 3, WIDTH, ROWS), perm=[3, 2, 0, 1])
    ),
    "weight reshaped": partial(
        convolved, None, behind_weight("Reshape", np.array([ROWS, WIDTH, 3, 3]), shape=(ROWS, WIDTH * 9))
    ),
    "weight scaled": partial(convolved, None, behind_weight("Mul", np.ones((ROWS, 1, 1, 1), np.float32) * 2)),
    "weight computed": partial(
        convolved, None, lambda g: g.pair(g.given("kernel", made.FLOAT, ROWS, WIDTH, 3, 3), np.float32(0.01))
    ),
    "bias": partial(convolved, bias=lambda g: g.held(np.ones(ROWS, np.float32))),
    "bias of integers, cast": partial(convolved, bias=lambda g: g.node("Cast", np.ones(ROWS, np.int32), to=made.FLOAT)),
}
OTHER_VALUES: dict[str, Callable[[], onnx.ModelProto]] = {
    "uint8": partial(convolved, lambda g: g.pair("x", zero=UINT8)),
    "uint8 of a Constant node": partial(convolved, lambda g: g.pair("x", zero=g.held(UINT8))),
    "no zero point": partial(convolved, lambda g: g.pair("x", zero=None)),
    "uint8 pooled within": partial(
        convolved,
        lambda g: dq(
            g, g.node("MaxPool", g.node("QuantizeLinear", "x", STEP, UINT8), kernel_shape=[2, 2]), STEP, UINT8
        ),
    ),
    "weight uint8": partial(convolved, None, lambda g: g.pair(g.floats(), np.float32(0.01), UINT8)),
    "scale of zero, computed": partial(convolved, scale_by(lambda g: g.node("Sub", STEP, STEP))),
    "scale below zero, cast": partial(convolved, scale_by(lambda g: g.node("Cast", np.array(-0.05), to=made.FLOAT))),
}
READS_FLOAT: dict[str, Callable[[], onnx.ModelProto]] = {
    "per channel": partial(convolved, lambda g: g.pair("x", np.full(WIDTH, STEP), np.zeros(WIDTH, np.int8), axis=1)),
    "scale a list of one": partial(
        convolved, lambda g: g.pair("x", np.array([0.05], np.float32), np.array([0], np.int8))
    ),
    "scale unsqueezed": partial(convolved, scale_by(lambda g: g.node("Unsqueeze", STEP, np.array([0])))),
    "scale quantized": partial(convolved, scale_by(lambda g: g.pair(g.constant(STEP), np.float32(0.01)))),
    "in blocks": partial(convolved, None, made.blocked(2, ROWS, WIDTH, 4, 3)),
    "ReLU behind": partial(convolved, over("Relu")),
    "Clip behind": partial(convolved, over("Clip", np.float32(0), np.float32(6))),
    "average pool behind": partial(convolved, over("AveragePool", kernel_shape=[2, 2])),
    "Resize behind": partial(
        convolved, over("Resize", np.array([], np.float32), np.array([1, 1, 2, 2], np.float32), mode="nearest")
    ),
    "addition behind": partial(convolved, over("Add", np.float32(0))),
    "batch norm behind": partial(convolved, over("BatchNormalization", *[np.ones(WIDTH, np.float32)] * 4)),
    "scaled per channel": partial(convolved, over("Mul", np.ones((1, WIDTH, 1, 1), np.float32))),
    "padded with ones": partial(convolved, over("Pad", AXES, np.float32(1))),
    "joined of two scales": partial(convolved, made.joined(STEP, np.float32(0.07))),
    "joined with a float": partial(convolved, made.joined(STEP, None)),
    "cast down and up": partial(
        convolved, lambda g: g.node("Cast", g.node("Cast", g.pair("x"), to=HALF), to=made.FLOAT)
    ),
    "cast up": partial(convolved, lambda g: g.node("Cast", g.pair("x", np.float16(0.05)), to=made.FLOAT)),
    "quantized, not dequantized": partial(
        convolved, lambda g: g.node("Cast", g.node("QuantizeLinear", "x", STEP, INT8), to=made.FLOAT)
    ),
    "input in float": partial(convolved, lambda g: "x"),
    "weight in float": partial(convolved, None, lambda g: g.floats()),
    "weight along axis 1": partial(convolved, None, lambda g: g.weight(axis=1)),
    "weight along the default axis": partial(
        convolved, None, lambda g: dq(g, np.ones((WIDTH, WIDTH, 3, 3), np.int8), np.full(WIDTH, STEP))
    ),
    "weight transposed from another axis": partial(
        convolved, None, behind_weight("Transpose", axis=2, shape=(3, 3, WIDTH, ROWS), perm=[3, 2, 0, 1])
    ),
    "weight reshaped from another axis": partial(
        convolved, None, behind_weight("Reshape", np.array([ROWS, WIDTH, 3, 3]), axis=1, shape=(WIDTH * 9, ROWS))
    ),
    "weight clipped": partial(convolved, None, behind_weight("Clip", np.float32(-1), np.float32(1))),
    "weight scaled along axis 1": partial(
        convolved, None, behind_weight("Mul", np.ones((1, WIDTH, 1, 1), np.float32) * 2)
    ),
    "INT4 weight alone": partial(convolved, lambda g: "x", made.stored(TensorProto.INT4)),
    "transposed convolution": partial(
        convolved, None, lambda g: g.weight(WIDTH, ROWS, 2, 2, axis=1), operator="ConvTranspose"
    ),
}
REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "zero point": partial(convolved, lambda g: g.pair("x", zero=np.int8(3))),
    "zero point of a Constant node": partial(convolved, lambda g: g.pair("x", zero=g.held(np.uint8(128)))),
    "zero point cast": partial(convolved, zero_by(lambda g: g.node("Cast", np.int32(3), to=TensorProto.INT8))),
    "zero point computed": partial(convolved, zero_by(lambda g: g.node("Sub", np.int8(3), np.int8(3)))),
    "zero point filled in": partial(
        convolved,
        zero_by(
            lambda g: g.node(
                "ConstantOfShape", np.array([], np.int64), value=onnx.numpy_helper.from_array(np.array([0], np.int8))
            )
        ),
    ),
    "zero point reshaped": partial(
        convolved, zero_by(lambda g: g.node("Reshape", np.array([0], np.int8), np.array([], np.int64)))
    ),
    "zero point an input": partial(convolved, zero_by(lambda g: g.given("zero", TensorProto.INT8))),
    "zero point cast to uint8": partial(
        convolved, zero_by(lambda g: g.node("Cast", np.int32(0), to=TensorProto.UINT8))
    ),
    "zero point's name empty": partial(convolved, zero_by(lambda g: "")),
    "one zero point of many": partial(
        convolved, None, lambda g: dq(g, ONES, PER_CHANNEL, np.array([0] * (ROWS - 1) + [1], np.int8), axis=0)
    ),
    "fewer zero points than scales": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL, INT8, axis=0)),
    "fewer scales than channels": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL[:16], axis=0)),
    "axis beyond": partial(convolved, None, lambda g: dq(g, ONES, PER_CHANNEL, axis=7)),
    "scale of zero": partial(convolved, lambda g: g.pair("x", g.held(np.float32(0)))),
    "scale below zero": partial(convolved, lambda g: g.pair("x", np.float32(-0.05))),
    "scale not a number": partial(convolved, lambda g: g.pair("x", np.float32("nan"))),
    "scales of two axes": partial(
        convolved, lambda g: g.pair("x", np.array([[0.05]], np.float32), np.array([[0]], np.int8))
    ),
    "uint8 by its type": partial(
        convolved, lambda g: dq(g, g.node("QuantizeLinear", "x", STEP, output_dtype=TensorProto.UINT8))
    ),
    "uint8 stored": partial(convolved, None, lambda g: g.weight(kind=np.uint8)),
    "uint8 input": partial(convolved, lambda g: dq(g, "x", STEP, UINT8), takes=TensorProto.UINT8),
    "int16": partial(convolved, lambda g: g.pair("x", zero=np.int16(0))),
    "uint4": partial(convolved, made.typed_pair(TensorProto.UINT4)),
    "int4": partial(convolved, made.typed_pair(TensorProto.INT4), made.stored(TensorProto.INT4)),
    "int4 weight": partial(convolved, None, made.stored(TensorProto.INT4)),
    "blocks along channels": partial(convolved, None, made.blocked(1, ROWS, WIDTH, 3, 3)),
    "int32 bias": partial(convolved, bias=lambda g: dq(g, g.held(np.ones(ROWS, np.int32)), g.held(STEP))),
    "half bias": partial(convolved, bias=lambda g: g.constant(np.ones(ROWS, np.float16))),
    "half input": partial(convolved, over("Cast", to=HALF)),
    "added to a half": partial(convolved, behind=lambda g, y: g.node("Add", y, g.node("Cast", y, to=HALF))),
    "stored weight transposed": partial(
        convolved,
        None,
        lambda g: dq(g, g.node("Transpose", np.ones((3, 3, WIDTH, ROWS), np.int8), perm=[3, 2, 0, 1]), STEP),
    ),
    "weights joined behind": partial(
        convolved, None, lambda g: g.node("Concat", g.weight(16, WIDTH, 3, 3), g.weight(16, WIDTH, 3, 3), axis=0)
    ),
    "dynamic": partial(convolved, made.dynamic),
    "integers": partial(
        convolved,
        lambda g: g.node("QuantizeLinear", "x", STEP, UINT8),
        lambda g: g.constant(np.ones((ROWS, WIDTH, 3, 3), np.uint8)),
        operator="ConvInteger",
        behind=lambda g, y: g.node("Cast", y, to=made.FLOAT),
    ),
    "ONNX Runtime's own": partial(
        convolved, behind=lambda g, y: g.node("FusedConv", y, g.floats(1, ROWS, 1, 1), domain="com.microsoft")
    ),
}


@pytest.mark.parametrize("case", READS_INT8)
def test_what_reads_int8_is_told_so(case: str) -> None:
    report = held_against(READS_INT8[case]())
    assert report.convolutions == (1, 1)
    assert not report.unknown
    assert {finding.kind for finding in report.findings} <= {"left in float"}


@pytest.mark.parametrize("case", OTHER_VALUES)
def test_what_is_taken_with_other_values_is_told_so(case: str) -> None:
    report = held_against(OTHER_VALUES[case]())
    assert report.convolutions == (1, 1)
    assert {finding.kind for finding in report.findings} == {"other values"}


@pytest.mark.parametrize("case", READS_FLOAT)
def test_what_reads_float_is_told_with_the_reason(case: str) -> None:
    report = held_against(READS_FLOAT[case]())
    assert report.convolutions == (0, 1)
    assert {finding.kind for finding in report.findings} == {"not fused"}
    assert all("runs in float: " in finding.message for finding in report.findings)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_told_with_the_remedy(case: str) -> None:
    report = held_against(REFUSED[case]())
    assert all(
        "; " in finding.message or ": " in finding.message for finding in report.findings if finding.kind == "refused"
    )


def test_fp8_is_unknown_since_it_depends_on_the_gpu() -> None:
    kind = TensorProto.FLOAT8E4M3FN
    model = convolved(made.typed_pair(kind), made.stored(kind))
    report = lint(model)
    assert report is not None
    assert (report.refused, report.unknown, report.convolutions) == (False, True, (0, 1))
    assert judged(model, "SM86").refusal
    assert "fp8" in str(judged(model, "SM89").reads)


def test_the_operators_that_the_parser_does_not_have_are_those_listed() -> None:
    logger = log_of(trt).logger
    parser: Any = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in known if not parser.supports_operator(name)} == UNSUPPORTED & known
    assert not any(parser.supports_operator(name) for name in ("FusedConv", "QLinearAdd", "QGemm"))
    assert not UNSUPPORTED & (ONE_TYPE | SCALES_FOLDED | ZERO_POINTS_FOLDED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made_by",
    [
        'scale_by(lambda g: g.node("Div", g.node("ReduceMax", g.node("Abs", "x"), keepdims=0), np.float32(127)))',
        'scale_by(lambda g: g.given("scale", FLOAT))',
        *(
            f'scale_by(lambda g: g.node("{name}", STEP{more}))'
            for name, more in (
                ("Sigmoid", ""),
                ("Relu", ""),
                ("Erf", ""),
                ("Round", ""),
                ("Pow", ", np.float32(2)"),
                ("Tanh", ""),
                ("Softplus", ""),
            )
        ),
    ],
)
def test_scales_that_crash_the_parser_are_refused(made_by: str) -> None:
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from exporter.lowering.qdq.lint import lint\nfrom lint_judge import judged\nfrom qdq_graphs import *\n"
        f"model = convolved({made_by})\n"
    )
    report = "report = lint(model)\nassert report is not None and report.refused\nassert judged(model).refusal\n"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert done.returncode < 0 or done.returncode == 0, done.stderr  # the parser crashes, or learns to refuse


def test_a_scale_by_an_operator_that_nobody_tried_is_unknown() -> None:
    report = lint(convolved(scale_by(lambda g: g.node("Cosh", STEP))))
    assert report is not None
    assert report.unknown
    assert "Cosh" in report.findings[0].message
    assert not SCALES_FOLDED & SCALES_NOT_FOLDED


def test_sizes_of_the_graphs_here_fit_the_kernels() -> None:
    assert (
        onnx.shape_inference.infer_shapes(convolved()).graph.output[0].type.tensor_type.shape.dim[2].dim_value
        == SIDE - 2
    )
