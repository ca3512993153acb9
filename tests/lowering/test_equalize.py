"""Equalization: which tensors are tied together, and that factors change nothing but the spread of their channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from residual_graphs import CHANNELS, INPUTS, conv, graph_of, op, residual

from exporter.graph.probe import inner_tensors
from exporter.lowering.equalize import (
    LARGEST_VALUE,
    SMALLEST_SHARE,
    Stream,
    bias_sizes,
    factors_from,
    factors_of_tensors,
    streams,
    with_factors,
)
from exporter.lowering.output_error import outputs_of
from exporter.lowering.repairs import Bench, find_factors, largest_by_channel


def random_factors(model: onnx.ModelProto, reach: float = 16) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(5)
    return {
        stream.tensors[0]: (reach ** random.uniform(-1, 1, stream.channels)).astype(np.float32)
        for stream in streams(model)
    }


def test_a_residual_stage_is_one_stream_and_the_inside_of_a_block_another() -> None:
    assert streams(residual()) == (
        Stream(
            ("stem.out", "relu.out", "pool.out", "b.out", "sum.out", "last.out", "gap.out", "flat.out"),
            CHANNELS,
            ("stem", "b"),
            ("a", "fc"),
        ),
        Stream(("a.out", "inner.out"), CHANNELS, ("a",), ("b",)),
    )


def test_factors_change_no_output_and_divide_what_is_tied() -> None:
    model = residual()
    factors = random_factors(model)
    assert len(factors) == 2
    scaled = with_factors(model, factors)
    expected, found = outputs_of(model, INPUTS)["logits"], outputs_of(scaled, INPUTS)["logits"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for name, each in factors_of_tensors(scaled, factors).items():
        before, after = (inner_tensors(one, [name], INPUTS)[name] for one in (model, scaled))
        divided = before / each.reshape(1, -1, *[1] * (before.ndim - 2))
        assert np.abs(after - divided).max() <= 1e-5 * np.abs(divided).max(), name


@pytest.mark.parametrize("groups", [2, CHANNELS])
def test_a_grouped_convolution_reads_each_channel_in_its_own_group(groups: int) -> None:
    model = graph_of(
        conv("stem", "input"),
        op("Relu", "stem.out", output="relu.out"),
        helper.make_node("Conv", ["relu.out", "Wgrouped", "Bgrouped"], ["g.out"], name="g", pads=[1] * 4, group=groups),
        op("Relu", "g.out", output="inner.out"),
        conv("b", "inner.out"),
        outputs=("b.out",),
    )
    weight = np.random.default_rng(9).normal(size=(CHANNELS, CHANNELS // groups, 3, 3)).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name == "Wgrouped":
            tensor.CopyFrom(numpy_helper.from_array(weight, "Wgrouped"))
    model = onnx.shape_inference.infer_shapes(model)
    factors = random_factors(model)
    assert list(factors) == ["stem.out", "g.out"]
    expected, found = outputs_of(model, INPUTS)["b.out"], outputs_of(with_factors(model, factors), INPUTS)["b.out"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "between",
    [
        op("Sigmoid", "stem.out", output="x.out"),
        op("Clip", "stem.out", output="x.out"),
        op("Mul", "stem.out", "stem.out", output="x.out"),
        op("Add", "stem.out", "input", output="x.out"),
        op("Add", "stem.out", "per_channel", output="x.out"),
        op("PRelu", "stem.out", "slope", output="x.out"),
        op("Softmax", "stem.out", output="x.out", axis=1),
        op("Concat", "stem.out", output="x.out", axis=1),
    ],
    ids=lambda node: node.op_type,
)
def test_what_lets_no_factor_through_leaves_the_stream_out(between: onnx.NodeProto) -> None:
    assert streams(graph_of(conv("stem", "input"), between, conv("b", "x.out"), outputs=("b.out",))) == ()


def test_a_stream_that_leaves_the_graph_or_shares_its_weights_is_left_out() -> None:
    nodes = (conv("stem", "input"), op("Relu", "stem.out", output="relu.out"), conv("b", "relu.out"))
    assert len(streams(graph_of(*nodes, outputs=("b.out",)))) == 1
    assert streams(graph_of(*nodes, outputs=("b.out", "relu.out"))) == ()
    shared = helper.make_node("Conv", ["relu.out", "Wstem", "Bstem"], ["b.out"], name="b", pads=[1] * 4)
    assert streams(graph_of(*nodes[:2], shared, outputs=("b.out",))) == ()


def test_factors_follow_the_channels_and_keep_dead_ones_within_fp16() -> None:
    """Channel 0 is dead behind its ReLU, with a bias that a factor of its own would send beyond FP16."""
    model = residual()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[name]).copy() for name in ("Wa", "Ba"))
    weight[0], bias[0] = 0, -3000
    weight[1] *= 100
    tensors["Wa"].CopyFrom(numpy_helper.from_array(weight, "Wa"))
    tensors["Ba"].CopyFrom(numpy_helper.from_array(bias, "Ba"))
    found = streams(model)
    largest = largest_by_channel(model, [name for one in found for name in one.tensors], INPUTS)
    assert largest["inner.out"][0] == 0
    factors = factors_from(model, found, largest)["a.out"]
    assert factors[1] > 10 * np.median(factors)
    assert abs(bias[0]) / factors[0] <= max(LARGEST_VALUE, float(largest["a.out"].max())) * 1.001
    assert factors[0] > SMALLEST_SHARE  # which its share alone would have made it
    assert np.isfinite(factors).all()
    assert (factors > 0).all()


def test_largest_values_by_channel_are_those_of_all_images() -> None:
    model = residual()
    found = largest_by_channel(model, ["sum.out", "flat.out"], INPUTS)
    for name, values in found.items():
        exact = inner_tensors(model, [name], INPUTS)[name]
        wanted = np.abs(exact).max(axis=(0, *range(2, exact.ndim)))
        assert values.shape == wanted.shape
        assert values == pytest.approx(wanted, rel=1e-6)


def test_equalization_is_kept_where_it_helps_and_said() -> None:
    model = residual()
    rescaled = with_factors(model, random_factors(model, reach=100))
    factors, said = find_factors(rescaled, Bench.of(rescaled, "tensorrt", INPUTS))
    assert set(factors) == {"stem.out", "a.out"}
    before, after = (float(text.split()[0]) for text in said.removesuffix(" dB").split(": ")[1].split(" -> "))
    assert after > before + 6
    assert said.startswith("equalized the channels of 2 streams: ")


def test_factors_that_help_the_pictures_they_are_fitted_to_alone_are_not_kept() -> None:
    """A channel between two convolutions is dead in every second picture, and large in the others."""
    model = residual()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, size in (("Wstem", 1.0), ("Wa", 10.0)):
        weight = numpy_helper.to_array(tensors[name]).copy()
        weight[0] = 0
        weight[0, 0, 1, 1] = size
        tensors[name].CopyFrom(numpy_helper.from_array(weight, name))
    for name, value in (("Bstem", 0.0), ("Ba", -1.0)):
        bias = numpy_helper.to_array(tensors[name]).copy()
        bias[0] = value
        tensors[name].CopyFrom(numpy_helper.from_array(bias, name))
    inputs = INPUTS.copy()
    inputs[::2, 0], inputs[1::2, 0] = -1, 3
    assert find_factors(model, Bench.of(model, "tensorrt", inputs)) == ({}, "")
    fitted = Bench("tensorrt", inputs[::2], inputs[::2], outputs_of(model, inputs[::2]))
    assert find_factors(model, fitted)[0]


def test_sizes_of_biases_are_those_of_the_weights() -> None:
    assert bias_sizes(residual()) == {"stem": CHANNELS, "a": CHANNELS, "b": CHANNELS, "fc": 3}
