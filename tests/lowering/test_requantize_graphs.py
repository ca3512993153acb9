"""Quantized graphs of unusual forms, one for each thing that is mended or refused, held against the file as it came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from lint_judge import held_against
from onnx import TensorProto, helper, numpy_helper
from qdq_graphs import ROWS, SIDE, WIDTH, Graph, half_weight, residual
from quantized_files import PER_ROW, WEIGHT, answers, operators, single, sqnr_db, stored_weight

from exporter.lowering.precisions import int8
from exporter.lowering.qdq.lint import QdqReport, lint
from exporter.lowering.requantize.mend import Mended, dequantized, is_quantized, mended, with_pairs

PICTURES = np.random.default_rng(5).normal(size=(1, WIDTH, SIDE, SIDE)).astype(np.float32)


def of_tensorrt(model: onnx.ModelProto) -> tuple[Mended, QdqReport, float]:
    """The mended graph, what the linter says of it, and its SQNR to the file, in dB."""
    result = mended(model, "tensorrt")
    report = lint(result.model)
    assert report is not None
    return result, report, sqnr_db(answers(int8.simulation(result.model), PICTURES), answers(model, PICTURES))


def transposed(graph: Graph) -> str:
    kernel = graph.node(
        "DequantizeLinear", np.ascontiguousarray(WEIGHT.transpose(2, 3, 1, 0)), PER_ROW, np.zeros(ROWS, np.int8), axis=3
    )
    return graph.node("Transpose", kernel, perm=[3, 2, 0, 1])


def reshaped(graph: Graph) -> str:
    kernel = graph.node("DequantizeLinear", WEIGHT.reshape(ROWS, -1), PER_ROW, np.zeros(ROWS, np.int8), axis=0)
    return graph.node("Reshape", kernel, np.array(WEIGHT.shape))


def unsigned(graph: Graph) -> str:
    values = (WEIGHT.astype(np.int16) + 128).astype(np.uint8)
    return graph.node("DequantizeLinear", values, PER_ROW, np.full(ROWS, 128, np.uint8), axis=0)


def in_constant_nodes(graph: Graph) -> str:
    return graph.node(
        "DequantizeLinear", graph.held(WEIGHT), graph.held(PER_ROW), graph.held(np.zeros(ROWS, np.int8)), axis=0
    )


def rounded_as_it_runs(graph: Graph) -> str:
    weight = graph.constant(WEIGHT * PER_ROW[:, None, None, None])
    return graph.pair(weight, PER_ROW, np.zeros(ROWS, np.int8), axis=0)


@pytest.mark.parametrize(
    "weight", [stored_weight, transposed, reshaped, unsigned, in_constant_nodes, rounded_as_it_runs]
)
def test_weights_keep_their_integers_however_they_are_stored(weight: Callable[[Graph], str]) -> None:
    result, report, sqnr = of_tensorrt(single(weight=weight))
    assert report.findings == ()
    assert report.convolutions == (1, 1)
    stored = [numpy_helper.to_array(one) for one in result.model.graph.initializer if one.name.endswith(".quantized")]
    np.testing.assert_array_equal(stored, [WEIGHT])
    assert sqnr > 60  # FP16


def test_scales_along_another_axis_are_chosen_anew() -> None:
    scales = np.linspace(0.0005, 0.001, WIDTH).astype(np.float32)
    result, report, sqnr = of_tensorrt(
        single(weight=lambda graph: graph.node("DequantizeLinear", WEIGHT, scales, np.zeros(WIDTH, np.int8), axis=1))
    )
    assert report.findings == ()
    assert result.said[0].startswith("weight rounded to INT8 anew, with a scale for each output channel: 'conv.")
    assert sqnr > 40


def test_a_dead_channel_may_have_a_scale_of_zero() -> None:
    scales = np.where(np.arange(ROWS) == 3, 0, PER_ROW).astype(np.float32)
    result, report, sqnr = of_tensorrt(
        single(weight=lambda graph: graph.node("DequantizeLinear", WEIGHT, scales, np.zeros(ROWS, np.int8), axis=0))
    )
    assert report.findings == ()
    assert result.said[0].startswith("weight scale of 0 written as 1")
    assert sqnr > 60


def test_an_int32_bias_becomes_float() -> None:
    values = np.arange(-16, 16, dtype=np.int32) * 1000
    model = single(
        bias=lambda graph: graph.node(
            "DequantizeLinear",
            values,
            (np.float32(0.03) * PER_ROW).astype(np.float32),
            np.zeros(ROWS, np.int32),
            axis=0,
        )
    )
    before = lint(model)
    assert before is not None
    assert before.refused
    result, report, sqnr = of_tensorrt(model)
    assert report.findings == ()
    assert any(one.startswith("INT32 bias written as floats: 'conv.") for one in result.said)
    assert sqnr > 60


@pytest.mark.parametrize("turn", ["inside", "norm", "bias", "main", "float shortcut"])
def test_residual_graphs_lint_without_findings_afterwards(turn: str) -> None:
    model = residual("main", "inside") if turn == "main" else residual(turn)
    before = lint(model)
    assert before is not None
    assert before.findings or turn in ("norm", "bias")
    result, report, sqnr = of_tensorrt(model)
    assert report.findings == ()
    assert report.convolutions == (3, 3)
    assert report.shortcuts == (1, 1)
    assert sqnr > {"main": 15, "float shortcut": 35}.get(turn, 55)  # the pair on the main branch clips much here
    assert ("folded into the convolution before it" in " ".join(result.said)) == (turn in ("norm", "bias"))


def test_a_pair_before_a_relu_computes_the_same_behind_it() -> None:
    model = single(behind=lambda graph, made: graph.node("Relu", graph.pair(made, np.float32(0.02))))
    result = mended(model, "cpu")
    assert any("Q/DQ pair moved behind the ReLU" in one for one in result.said)
    assert any("at an output of the network" in one for one in result.said)


def test_processors_are_told_what_has_no_scale() -> None:
    result = mended(residual(), "cpu")  # as TensorRT wants it: the convolution before the addition makes floats
    (made,) = (
        one for one in result.said if one.startswith("left in float, since the file has no scale for its output")
    )
    names = [node.name for node in result.exact.graph.node if node.op_type in ("Conv", "Add")]
    assert made.endswith(f": '{names[2]}', '{names[3]}'")


@pytest.mark.parametrize("opset", [13, 17, 19, 22])
def test_the_opset_becomes_ours(opset: int) -> None:
    model = residual("inside")
    model.opset_import[0].version = opset
    result = mended(model)
    assert result.model.opset_import[0].version in (19, 20)
    assert {node.op_type for node in result.exact.graph.node} == {
        "Conv",
        "Relu",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }


@pytest.mark.parametrize("turn", ["inside", "main"])
def test_tensorrt_reads_integers_in_what_was_mended(turn: str) -> None:
    report = held_against(mended(residual(turn)).model)
    assert report.convolutions == (3, 3)
    assert report.findings == ()


def test_two_pairs_in_a_row_are_one_that_clips_as_both_do() -> None:
    twice = single(lambda graph: graph.pair(graph.pair("x", np.float32(0.01)), np.float32(0.03)))
    once = single(lambda graph: graph.pair("x", np.float32(0.01)))
    np.testing.assert_array_equal(answers(mended(twice).model, PICTURES), answers(mended(once).model, PICTURES))
    same = mended(single(lambda graph: graph.pair(graph.pair("x"))))
    assert any(one.startswith("second Q/DQ pair of the same tensor removed: ") for one in same.said)


def test_a_tensor_may_be_read_through_two_scales() -> None:
    graph = Graph(17)
    sides = [graph.node("Conv", graph.pair("x", np.float32(step)), stored_weight(graph)) for step in (0.03, 0.01)]
    _, report, sqnr = of_tensorrt(graph.model(graph.node("Concat", *sides, axis=1)))
    assert report.convolutions == (2, 2)
    assert sqnr > 55


def test_seven_bits_above_zero_fit_into_int8() -> None:
    def cut(graph: Graph) -> str:
        scale, zero = np.float32(0.02), np.uint8(0)
        stored = graph.node("QuantizeLinear", graph.node("Relu", "x"), scale, zero)
        return graph.node("DequantizeLinear", graph.node("Clip", stored, np.uint8(0), np.uint8(127)), scale, zero)

    _, report, sqnr = of_tensorrt(single(cut))
    assert report.findings == ()
    assert sqnr > 48  # the scale's FP16 number is another step for a value here and there


def test_half_precision_is_written_as_single() -> None:
    def half(graph: Graph) -> str:
        return graph.pair(graph.node("Cast", "x", to=TensorProto.FLOAT16), np.float16(0.03))

    model = single(
        half, half_weight, opset=19, behind=lambda graph, made: graph.node("Cast", made, to=TensorProto.FLOAT)
    )
    behind = dequantized(model)
    assert operators(behind) == {"Conv"}
    assert {one.data_type for one in behind.graph.initializer} == {TensorProto.FLOAT}
    result, report, _ = mended(model), lint(mended(model).model), None
    assert report is not None
    assert report.findings == ()
    assert sqnr_db(answers(result.model, PICTURES), answers(model, PICTURES)) > 50


def test_weights_that_are_only_stored_quantized_do_not_count() -> None:
    graph = Graph(17)
    assert not is_quantized(graph.model(graph.node("Conv", "x", stored_weight(graph))))


@pytest.mark.parametrize("filled", [[np.uint8(7)], [np.uint8(200)], []], ids=["zero", "more", "none"])
def test_padding_of_integers_is_padding_of_what_they_stand_for(filled: list[np.uint8]) -> None:
    def padded(graph: Graph) -> str:
        scale, zero = np.float32(0.03), np.uint8(7)
        stored = graph.node("QuantizeLinear", graph.node("Relu", "x"), scale, zero)
        return graph.node(
            "DequantizeLinear", graph.node("Pad", stored, np.array([0, 0, 1, 1] * 2), *filled), scale, zero
        )

    model = single(padded)
    written = with_pairs(model)
    assert [node.op_type for node in written.graph.node].count("QuantizeLinear") == 2
    np.testing.assert_allclose(answers(written, PICTURES), answers(model, PICTURES), rtol=1e-5, atol=1e-6)
    assert sqnr_db(answers(dequantized(model), PICTURES), answers(model, PICTURES)) > 40


def test_a_relu6_that_a_pair_took_in_comes_back() -> None:
    step = np.float32(6 / 255)
    model = single(behind=lambda graph, made: graph.node("Sigmoid", graph.pair(made, step, np.uint8(0))))
    behind = dequantized(model)
    (clip,) = (node for node in behind.graph.node if node.op_type == "Clip")
    values: dict[str, Any] = {one.name: numpy_helper.to_array(one) for one in behind.graph.initializer}
    assert [float(values[name]) for name in clip.input[1:]] == [0.0, 6.0]
    assert sqnr_db(answers(behind, PICTURES), answers(model, PICTURES)) > 40


def test_a_matrix_product_and_what_is_added_become_a_classifier() -> None:
    graph = Graph(17)
    kernel = graph.node("DequantizeLinear", WEIGHT // 2, PER_ROW, np.zeros(ROWS, np.int8), axis=0)
    made = graph.node("Conv", graph.pair("x"), kernel)
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", graph.pair(made, np.float32(0.05))))
    weight = graph.node("DequantizeLinear", WEIGHT[:, :10, 0, 0] // 2, np.float32(0.01), np.int8(0))
    product = graph.node("MatMul", graph.pair(pooled, np.float32(0.02)), weight)
    model = graph.model(graph.node("Add", product, graph.constant(np.linspace(-1, 1, 10).astype(np.float32))))
    result = mended(model, "cpu")
    (gemm,) = (node for node in result.model.graph.node if node.op_type == "Gemm")
    assert helper.get_node_attr_value(gemm, "transB") == 1
    assert sqnr_db(answers(result.model, PICTURES), answers(model, PICTURES)) > 45
