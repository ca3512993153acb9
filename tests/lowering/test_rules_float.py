"""The linter's rules against TensorRT-RTX: what they call refused is, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from lint_judge import judged
from onnx import TensorProto
from qdq_graphs import FLOAT, HALF, WIDTH, Graph
from rule_graphs import FLOATS, GRAPHS, NORM, alone, down, linted

from exporter.engines.verdict import builder_verdict
from exporter.lowering.lint.rules import RULES

CRASH = ("RE111", "RE112")
"""Rules about what the parser crashes on, which `tests/cli/test_cli_inspect.py` tries in a process of its own."""
UNTOLD = ("RE126", "RE220")
"""Rules about constants in files that are not there."""
HELD = [
    number
    for number in GRAPHS
    if number[:3] not in ("RE7", "RE8") and number not in (*CRASH, *UNTOLD, "RE124") and RULES[number].seen
]
HELD += [number for number in GRAPHS if number[:3] in ("RE3", "RE4", "RE5") and number not in (*HELD, "RE403")]


def half_norm(graph: Graph) -> str:
    return graph.node("BatchNormalization", down(graph), *NORM)


SIDES = np.array([0, 0, 1, 1, 0, 0, 1, 1])
TAKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "batch norm of two types": partial(alone, half_norm, gives=HALF),
    "power of two types": partial(alone, lambda g: g.node("Pow", down(g), np.float32(2)), gives=HALF),
    "bounds of another type": partial(
        alone, lambda g: g.node("Clip", down(g), np.float32(0), np.float32(6)), gives=HALF
    ),
    "padding of another type": partial(alone, lambda g: g.node("Pad", down(g), SIDES, np.float32(0)), gives=HALF),
    "cubic": partial(
        alone, lambda g: g.node("Resize", "x", "", np.array([1, 1, 2, 2], np.float32), mode="cubic")
    ),
    "pool rounded up": partial(
        alone, lambda g: g.node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    ),
    "pixels, cast": partial(alone, lambda g: g.node("Cast", "x", to=FLOAT), takes=TensorProto.UINT8),
    "pixels, to INT32": partial(
        alone, lambda g: g.node("Cast", g.node("Cast", "x", to=TensorProto.INT32), to=FLOAT), takes=TensorProto.UINT8
    ),
    "pixels as an output": partial(
        alone, lambda g: g.node("Cast", "x", to=TensorProto.UINT8), gives=TensorProto.UINT8
    ),
    "size of pixels": partial(
        alone, lambda g: g.node("Shape", "x"), takes=TensorProto.UINT8, gives=TensorProto.INT64
    ),
    "ReLU of INT64": partial(
        alone, lambda g: g.node("Relu", "x"), takes=TensorProto.INT64, gives=TensorProto.INT64
    ),
    "slopes of old, of one shape": partial(alone, lambda g: g.node("PRelu", "x", "x"), opset=6),
    "dropout of old, in use": partial(alone, lambda g: g.node("Dropout", "x", is_test=1), opset=6),
    "pads that wrap": partial(alone, lambda g: g.node("Pad", "x", SIDES, mode="wrap")),
    "a weight that is an input": partial(alone, lambda g: g.node("Conv", "x", g.given("w", FLOAT, 8, WIDTH, 3, 3))),
    "dropout for inference": partial(alone, lambda g: g.node("Dropout", "x", np.float32(0.5), np.array(False))),
}  # fmt: skip
REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "batch norm in training": partial(
        alone, lambda g: g.node("BatchNormalization", "x", *NORM, training_mode=1), opset=17
    ),
    "normalization of two types": partial(
        alone, lambda g: g.node("InstanceNormalization", down(g), *NORM[:2]), gives=HALF
    ),
    "layer norm of two types": partial(
        alone, lambda g: g.node("LayerNormalization", down(g), np.ones(8, np.float32)), gives=HALF
    ),
    "cast to INT16": partial(alone, lambda g: g.node("Cast", g.node("Cast", "x", to=TensorProto.INT16), to=FLOAT)),
    "through UINT8": partial(alone, lambda g: g.node("Cast", g.node("Cast", "x", to=TensorProto.UINT8), to=FLOAT)),
    "product of INT64": partial(
        alone, lambda g: g.node("MatMul", "x", "x"), takes=TensorProto.INT64, gives=TensorProto.INT64
    ),
    "cropped and resized": partial(
        alone,
        lambda g: g.node(
            "Resize", "x", np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), np.array([1, 1, 2, 2], np.float32),
            mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
        ),
    ),
    "resized symmetrically": partial(
        alone,
        lambda g: g.node(
            "Resize", "x", "", np.array([1, 1, 2, 2], np.float32), mode="linear",
            coordinate_transformation_mode="half_pixel_symmetric",
        ),
    ),
    "resized to fit": partial(
        alone,
        lambda g: g.node(
            "Resize", "x", "", "", np.array([8, 4]), mode="linear", axes=[2, 3],
            keep_aspect_ratio_policy="not_larger",
        ),
    ),
    "average pool dilated": partial(
        alone, lambda g: g.node("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2])
    ),
    "dropout of old": partial(alone, lambda g: g.node("Dropout", "x", is_test=0), opset=6),
    "slopes of old": partial(alone, lambda g: g.node("PRelu", "x", np.ones(WIDTH, np.float32)), opset=6),
    "deformable": partial(
        alone, lambda g: g.node("DeformConv", "x", FLOATS, np.zeros((1, 2, 8, 8), np.float32))
    ),
    "boxes": partial(
        alone,
        lambda g: g.node("NonMaxSuppression", "x", np.ones((1, 2, 8), np.float32), np.array([3])),
        shape=(1, 8, 4),
        gives=TensorProto.INT64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", HELD)
def test_what_a_rule_calls_refused_is_refused_and_nothing_else(number: str) -> None:
    model = GRAPHS[number]()
    is_refused = linted(model, target="rtx").refused
    assert is_refused is (RULES[number].kind == "refused")
    assert bool(judged(model).refusal) is is_refused, judged(model).refusal


@pytest.mark.parametrize("case", TAKEN)
def test_what_no_rule_speaks_of_is_taken(case: str) -> None:
    model = TAKEN[case]()
    assert judged(model).refusal == ""
    assert not linted(model, target="rtx").refused


@pytest.mark.parametrize("case", REFUSED)
def test_other_forms_that_rules_speak_of_are_refused(case: str) -> None:
    model = REFUSED[case]()
    assert judged(model).refusal
    assert linted(model, target="rtx").refused


@pytest.mark.parametrize("opset", [5, 13, 20, 25, 27])
def test_the_parser_reads_every_opset_and_ir_version(opset: int) -> None:
    model = alone(lambda g: g.node("Relu", "x"), opset=opset)
    model.ir_version = opset // 2
    assert judged(model).refusal == ""


@pytest.mark.slow
def test_of_the_models_that_onnx_ships_those_are_refused_that_the_rules_refuse() -> None:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    files = sorted(data.glob("*/*/model.onnx"))
    assert len(files) > 100
    for file in files:
        _, verdict = builder_verdict(str(file))
        assert bool(verdict.refusal) is linted(onnx.load(file), target="rtx").refused, (file, verdict.refusal)


def test_half_scales_of_an_old_opset_are_refused_by_onnxruntime_alone() -> None:
    model = GRAPHS["RE602"]()
    with pytest.raises(Exception, match=r"tensor\(float16\)"):  # onnxruntime's own kinds share no base
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert judged(model).refusal == ""
