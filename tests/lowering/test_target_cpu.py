"""`--target cpu`: where pairs go, how numbers are held, and that onnxruntime runs on integers what the graph promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cpu_graphs import lowered, operators_run, run_file
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from residual_graphs import CHANNELS, INPUTS, conv, graph_of, op, residual

from exporter.graph.probe import open_session, run_session
from exporter.lowering.qdq.integer_nodes import kernel_count
from exporter.lowering.qdq.targets import Stored, cpu, cpu_safe
from runtimes.kernels import KernelCount

UNSIGNED, CENTRED = Stored("uint8", 0, 255), Stored("uint8", 128, 127)


def values(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_convolutions_read_and_make_quantized_tensors_and_additions_do_on_both_sides() -> None:
    placed = cpu.place_pairs(residual())
    assert placed.tensors == (
        *("input", "relu.out", "pool.out", "inner.out", "b.out", "last.out"),
        *("gap.out", "flat.out"),
    )
    assert {tuple(edge) for edge in placed.edges} == {
        ("stem", 0),
        ("pool", 0),
        ("a", 0),
        ("b", 0),
        ("sum", 0),
        ("sum", 1),
        ("gap", 0),
        ("flat", 0),
        ("fc", 0),
    }
    assert placed.weights == ("stem", "a", "b", "fc")
    assert placed.classifiers == ("fc",)
    assert not placed.half
    assert placed.narrow == {"stem", "fc"}


def test_numbers_without_negatives_have_all_steps_above_zero() -> None:
    placed = cpu.place_pairs(residual())
    assert placed.stored == {
        "input": CENTRED,
        "relu.out": UNSIGNED,
        "pool.out": UNSIGNED,
        "inner.out": UNSIGNED,
        "b.out": CENTRED,
        "last.out": UNSIGNED,
        "gap.out": UNSIGNED,
        "flat.out": UNSIGNED,
    }
    assert placed.ranges["pool.out"] == "relu.out"  # a pool's output has its input's range, so that it is the same pair
    assert placed.ranges["flat.out"] == "gap.out"


def test_scales_and_the_remainder_are_fp32_and_weights_of_the_first_convolution_and_the_classifier_have_seven_bits() -> (
    None
):
    found = values(lowered(residual()))
    assert {array.dtype.name for array in found.values()} == {"float32", "int8", "uint8"}
    assert {np.abs(found[f"W{name}.quantized"]).max() for name in ("stem", "fc")} == {63}
    assert {np.abs(found[f"W{name}.quantized"]).max() for name in "ab"} == {127}
    assert found["relu.out.scale"] == found["pool.out.scale"]
    safe = values(lowered(residual(), "cpu-safe"))
    assert {np.abs(safe[f"W{name}.quantized"]).max() for name in ("stem", "a", "b", "fc")} == {63}
    assert cpu_safe.place_pairs(residual()).edges == cpu.place_pairs(residual()).edges


def two_outputs() -> onnx.ModelProto:
    """A convolution whose output leaves the graph, one that a float reader reads, and one in a chain."""
    return graph_of(
        conv("a", "input"),
        op("Relu", "a.out", output="relu.out"),
        conv("b", "relu.out"),
        op("Sigmoid", "b.out", output="gate.out"),
        op("Mul", "b.out", "gate.out", output="logits"),
        outputs=("relu.out", "logits"),
    )


def averaged() -> onnx.ModelProto:
    """An average pool between two convolutions, and an activation that no rounding does."""
    return graph_of(
        conv("a", "input"),
        op("LeakyRelu", "a.out", output="leaky.out", alpha=0.1),
        op("AveragePool", "leaky.out", output="pool.out", kernel_shape=[2, 2]),
        conv("b", "pool.out"),
        op("GlobalAveragePool", "b.out", output="gap.out"),
        op("Flatten", "gap.out", output="logits"),
    )


def depthwise() -> onnx.ModelProto:
    return graph_of(
        conv("a", "input", groups=CHANNELS),
        op("Relu", "a.out", output="relu.out"),
        op("GlobalAveragePool", "relu.out", output="gap.out"),
        op("Flatten", "gap.out", output="logits"),
        groups=CHANNELS,
    )


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (residual(), KernelCount(3, 3, 1, 1)),
        (depthwise(), KernelCount(1, 1, 0, 0)),
        (two_outputs(), KernelCount(2, 1, 0, 0)),  # what leaves the graph is float, so that its maker is
        (averaged(), KernelCount(2, 2, 0, 0)),
    ],
    ids=["residual", "depthwise", "float readers", "average pool"],
)
def test_onnxruntime_runs_on_integers_what_the_graph_promises(
    graph: onnx.ModelProto, expected: KernelCount, tmp_path: Path
) -> None:
    model = lowered(graph)
    onnx.checker.check_model(model, full_check=True)
    assert kernel_count(model) == expected
    found, kernels = run_file(model, tmp_path)
    assert kernels.shortfall(expected) == ""
    assert kernels.integer_convolutions == expected.integer_convolutions
    written = run_session(open_session(model), {"input": INPUTS})  # as it is written, in floating point
    exact = run_session(open_session(graph), {"input": INPUTS})
    for name, answers in found.items():
        noise = np.square(written[name] - exact[name]).mean()
        assert np.square(answers - written[name]).mean() < noise / 10  # a step here and there: integers round ties
        assert noise < np.square(exact[name]).mean() / 100


def test_blocks_in_float_read_nothing_quantized(tmp_path: Path) -> None:
    model = lowered(residual(), float_nodes=["a", "inner", "b", "sum", "last"])
    assert [node.name for node in model.graph.node if node.op_type == "DequantizeLinear"] == [
        "input.dequantize",
        "Wstem.dequantize",
        "relu.out.dequantize",
        "gap.out.dequantize",
        "flat.out.dequantize",
        "Wfc.dequantize",
    ]
    assert kernel_count(model) == KernelCount(3, 1, 1, 0)
    _, kernels = run_file(model, tmp_path)
    assert (kernels.integer_convolutions, kernels.integer_additions) == (1, 0)


def test_global_pooling_and_the_classifier_run_on_integers_up_to_its_bias(tmp_path: Path) -> None:
    found = operators_run(lowered(residual()), tmp_path)
    assert [kind for kind in found if kind not in ("Flatten", "Transpose")][-3:] == [
        "QLinearGlobalAveragePool",
        "QGemm",
        "Add",
    ]


def reduced(**attributes: Any) -> onnx.ModelProto:
    """Pooling by ReduceMean, and a classifier of these attributes."""
    graph = graph_of(
        conv("a", "input"),
        op("Relu", "a.out", output="relu.out"),
        op("ReduceMean", "relu.out", "axes", output="gap.out", keepdims=0),
        helper.make_node("Gemm", ["gap.out", "Wfc", "Bfc"], ["logits"], name="fc", **attributes),
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    if not attributes.get("transB"):
        weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "Wfc")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), "Wfc"))
    return graph


@pytest.mark.parametrize(
    ("attributes", "classifiers"),
    [({"transB": 1}, ("fc",)), ({}, ()), ({"transB": 1, "alpha": 0.5}, ()), ({"transB": 1, "beta": 2.0}, ())],
)
def test_a_classifier_is_quantized_where_each_row_of_its_weight_is_a_class(
    attributes: dict[str, Any], classifiers: tuple[str, ...], tmp_path: Path
) -> None:
    graph = reduced(**attributes)
    assert cpu.place_pairs(graph).classifiers == classifiers
    model = lowered(graph)
    assert ("QGemm" in operators_run(model, tmp_path)) == bool(classifiers)
    expected = run_session(open_session(graph), {"input": INPUTS})["logits"]
    found, _ = run_file(model, tmp_path)
    assert np.abs(found["logits"] - expected).max() < 0.05 * np.abs(expected).max()


def test_a_classifier_in_float_leaves_the_addition_before_it_on_integers(tmp_path: Path) -> None:
    for nodes in (["fc"], ["gap", "flat", "fc"]):
        model = lowered(residual(), float_nodes=nodes)
        assert "Wfc.dequantize" not in {node.name for node in model.graph.node}
        assert kernel_count(model) == KernelCount(3, 3, 1, 1)
        assert operators_run(model, tmp_path)[-2:] == ["Flatten", "Gemm"]


def test_a_dead_channel_with_a_large_bias_keeps_it(tmp_path: Path) -> None:
    """onnxruntime holds a bias as INT32 in steps of the input's scale times the weight's: of a channel whose weights
    are zero, or next to it, the step is as large as the bias needs."""
    graph = residual()
    for tensor in graph.graph.initializer:
        if tensor.name in ("Wa", "Ba"):
            changed = numpy_helper.to_array(tensor).copy()
            changed[0], changed[1] = (0.0, 1e-20) if tensor.name == "Wa" else (40.0, -0.5)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    model = lowered(graph)
    found, _ = run_file(model, tmp_path)
    expected = run_session(open_session(graph), {"input": INPUTS})["logits"]
    assert np.abs(found["logits"] - expected).max() < 0.05 * np.abs(expected).max()


def test_a_file_for_a_processor_that_says_so_runs_on_integers_and_others_as_they_are_written(tmp_path: Path) -> None:
    model = lowered(residual())
    assert run_file(model, tmp_path, "cpu")[1].integer_convolutions == 3
    assert run_file(model, tmp_path, "tensorrt")[1].integer_convolutions == 0


def test_a_resize_may_make_negative_values() -> None:
    """A cubic curve overshoots."""
    graph = graph_of(
        conv("a", "input"),
        op("Relu", "a.out", output="relu.out"),
        op("Resize", "relu.out", output="larger.out", mode="cubic"),
        conv("b", "larger.out"),
        op("Flatten", "b.out", output="logits"),
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    next(node for node in graph.graph.node if node.op_type == "Resize").input.extend(["", "scales"])
    assert cpu.place_pairs(graph).stored["relu.out"] == UNSIGNED
    assert cpu.place_pairs(graph).stored["larger.out"] == CENTRED
