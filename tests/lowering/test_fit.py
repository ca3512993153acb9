"""INT8 scales that FP16 does not hold are moved between weight and input; what cannot be moved stays in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rounding import needs_rounding

from exporter.lowering.precisions import int8
from exporter.lowering.qdq.fit import SMALLEST_WEIGHT_SCALE
from exporter.lowering.qdq.lint import lint
from runtimes.backends.onnxruntime import OnnxRuntime, rounds_fp16
from runtimes.errors import PlanError

CHANCE = np.random.default_rng(0)
X = CHANCE.standard_normal((4, 3, 8, 8)).astype(np.float32)
W = CHANCE.standard_normal((8, 3, 3, 3)).astype(np.float32)
THRESHOLD = float(np.abs(X).max())
QUANTIZED = ["Cast", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Cast"]
"""The operators of a single convolution in INT8, nothing moved."""


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], shape: list[Any], result: list[Any]
) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("input", shape), ("logits", result))
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs.split(), [f"{output}.out" if output != "logits" else output], name=output, **attributes
    )


def convolution(weight: NDArray[np.float32]) -> onnx.ModelProto:
    return graph_of(
        [node("Conv", "input w", "logits")], {"w": weight}, ["batch", 3, 8, 8], ["batch", len(weight), 6, 6]
    )


def answer(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    if not rounds_fp16() and any(one.op_type == "QuantizeLinear" for one in model.graph.node):
        model = int8.simulation(model)  # which this onnxruntime computes rightly
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        result: NDArray[np.float32] = runtime.run({"input": inputs})["logits"]
        return result


def sqnr_db(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10((exact**2).sum() / max(float(((exact - found) ** 2).sum()), 1e-30)))


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@needs_rounding  # the simulation rounds more than is asked for here
@pytest.mark.parametrize(
    "power", [8, 12, 15, -8, -12], ids=["pixels of 0..255", "12 bits", "16 bits", "thousandths", "smaller"]
)
def test_a_network_on_other_units_quantizes_to_the_same_numbers(power: int) -> None:
    """The inputs times a power of two and the weights divided by it: the same products, integer by integer."""
    plain = int8.lower(convolution(W), {"input": THRESHOLD})
    model = convolution(np.ldexp(W, -power))
    lowered = int8.lower(model, {"input": THRESHOLD * 2.0**power})
    onnx.checker.check_model(lowered, full_check=True)
    inputs = np.ldexp(X, power)
    found = answer(lowered, inputs)
    assert sqnr_db(answer(model, inputs), found) > 36
    assert sqnr_db(answer(plain, X), found) > 60  # but for the weights' scales, which FP16 rounds up
    assert all(
        value >= np.float16(SMALLEST_WEIGHT_SCALE)
        for name, values in constants(lowered).items()
        if name.endswith(".scale")
        for value in values.ravel()
    )
    report = lint(lowered)
    assert report is not None
    assert report.convolutions == (1, 1)


def test_scales_that_fp16_holds_are_not_moved() -> None:
    lowered = int8.lower(convolution(W), {"input": THRESHOLD})
    assert [one.op_type for one in lowered.graph.node] == QUANTIZED


@pytest.mark.parametrize("dead", [0.0, 1e-9, 1e-5])
def test_a_dead_channel_moves_nothing(dead: float) -> None:
    weight = W.copy()
    weight[3] *= dead
    lowered = int8.lower(convolution(weight), {"input": THRESHOLD})
    assert "Mul" not in [one.op_type for one in lowered.graph.node]
    assert sqnr_db(answer(convolution(weight), X), answer(lowered, X)) > 36


@pytest.mark.parametrize("dead", [0.0, 1e-20])
def test_a_dead_layer_stays_quantized(dead: float) -> None:
    lowered = int8.lower(convolution(W * np.float32(dead)), {"input": THRESHOLD})
    assert [one.op_type for one in lowered.graph.node] == QUANTIZED
    assert not answer(lowered, X).any()


def two_layers(first: float, second: float) -> onnx.ModelProto:
    weights = {
        "a": W * np.float32(first),
        "b": CHANCE.standard_normal((8, 8, 1, 1)).astype(np.float32) * np.float32(second),
    }
    nodes = [node("Conv", "input a", "one"), node("Relu", "one.out", "relu"), node("Conv", "relu.out b", "logits")]
    return graph_of(nodes, weights, ["batch", 3, 8, 8], ["batch", 8, 6, 6])


def test_numbers_too_small_on_both_sides_stay_in_float_and_right() -> None:
    model = two_layers(1e-5, 1e-2)
    lowered = int8.lower(model, {"input": THRESHOLD, "relu.out": 2e-5})
    made = {name: one.op_type for one in lowered.graph.node for name in one.output}
    assert {
        one.name: made.get(one.input[1]) == "DequantizeLinear" for one in lowered.graph.node if one.op_type == "Conv"
    } == {
        "one": True,
        "logits": False,
    }
    onnx.checker.check_model(lowered, full_check=True)


def test_one_weight_may_be_moved_for_one_convolution_and_not_for_another() -> None:
    small = W[:3] * np.float32(1e-4)
    nodes = [
        node("Conv", "input w", "one", pads=[1, 1, 1, 1]),
        node("Mul", "one.out c", "up"),
        node("Conv", "up.out w", "logits", pads=[1, 1, 1, 1]),
    ]
    model = graph_of(nodes, {"w": small, "c": np.array(1e4, np.float32)}, ["batch", 3, 8, 8], ["batch", 3, 8, 8])
    first = answer(
        graph_of(
            [node("Conv", "input w", "logits", pads=[1, 1, 1, 1])], {"w": small}, ["batch", 3, 8, 8], ["batch", 3, 8, 8]
        ),
        X,
    )
    lowered = int8.lower(model, {"input": THRESHOLD, "up.out": float(np.abs(first).max()) * 1e4})
    onnx.checker.check_model(lowered, full_check=True)
    assert sqnr_db(answer(model, X), answer(lowered, X)) > 30


def gated(*, shared: bool, reduction: str) -> onnx.ModelProto:
    """A quantized convolution, and one on what is pooled globally; of one weight, where shared."""
    pool = (
        node("GlobalMaxPool", "main.out", "pool")
        if reduction == "GlobalMaxPool"
        else helper.make_node(reduction, ["main.out", "axes"], ["pool.out"], name="pool", keepdims=1)
    )
    weight = "w" if shared else "v"
    nodes = [
        node("Conv", "input w", "main"),
        pool,
        node("Conv", f"pool.out {weight}", "gate"),
        node("Mul", "main.out gate.out", "logits"),
    ]
    square = CHANCE.standard_normal((3, 3, 1, 1)).astype(np.float32)
    weights: dict[str, NDArray[Any]] = {"w": square} if shared else {"w": square, "v": square}
    if reduction != "GlobalMaxPool":
        weights["axes"] = np.array([2, -1])
    return graph_of(nodes, weights, ["batch", 3, 8, 8], ["batch", 3, 8, 8])


@pytest.mark.parametrize("reduction", ["GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceL2"])
@pytest.mark.parametrize("shared", [True, False], ids=["one weight", "two weights"])
def test_a_float_convolution_keeps_the_weight_that_a_quantized_one_shares(shared: bool, reduction: str) -> None:
    model = gated(shared=shared, reduction=reduction)
    lowered = int8.lower(model, {"input": THRESHOLD})
    onnx.checker.check_model(lowered, full_check=True)
    assert next(one for one in lowered.graph.node if one.name == "gate").input[1] == ("w" if shared else "v")
    assert sqnr_db(answer(model, X), answer(lowered, X)) > 30


def test_a_network_that_int8_quantizes_nothing_of_is_refused_with_the_reasons() -> None:
    none = graph_of([node("Relu", "input", "logits")], {}, ["batch", 3, 8, 8], ["batch", 3, 8, 8])
    with pytest.raises(
        PlanError, match=r"^expected a convolution that --int8 can quantize, got a network without any; take --fp16$"
    ):
        int8.observed_tensors(none)
    nodes = [node("GlobalAveragePool", "input", "pool"), node("Conv", "pool.out w", "logits")]
    gate = graph_of(nodes, {"w": W[:, :, :1, :1].copy()}, ["batch", 3, 8, 8], ["batch", 8, 1, 1])
    with pytest.raises(
        PlanError, match=r"got none: 'logits' stays in float, its input is one pooled pixel: .*; take --fp16$"
    ):
        int8.observed_tensors(gate)
