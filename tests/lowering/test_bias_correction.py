"""Bias correction and the choice among ranges: measured on exact inputs and on the outputs, kept where they help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from residual_graphs import CHANNELS, INPUTS, conv, graph_of, op, residual

from calibration.collect import collect
from calibration.table import CalibrationTable, Provenance, table_from_histograms
from exporter.graph.counts import macs_by_node
from exporter.graph.probe import inner_tensors
from exporter.lowering.bias_correction import (
    classifier,
    classifier_correction,
    find_corrections,
    mean_errors,
    subtract_from_biases,
    with_classifier_correction,
)
from exporter.lowering.lower import check_float_weights
from exporter.lowering.output_error import output_error, outputs_of
from exporter.lowering.picture_count import MOST_PICTURES, affordable_pictures
from exporter.lowering.qdq.pairs import placement, with_pairs
from exporter.lowering.repairs import FEWEST_DECIDING, REPAIR_FORWARDS, Bench, choose_calibrator
from runtimes.errors import PlanError
from runtimes.preprocess import Preprocess

BENCH = Bench.of(residual(), "tensorrt", INPUTS)


def table_of(model: onnx.ModelProto) -> CalibrationTable:
    histograms = collect(model, placement(model).observed, [INPUTS])
    provenance = Provenance("0" * 64, Preprocess(6, (6, 6), "bilinear", True, (0.0,), (1.0,)), {})
    return table_from_histograms(histograms, provenance, images=len(INPUTS), fingerprint="0")


@pytest.fixture(name="thresholds", scope="module")
def thresholds_fixture() -> dict[str, float]:
    """So small that every tensor is clipped, which shifts what the convolutions give."""
    return {name: value / 4 for name, value in table_of(residual()).thresholds("minmax").items()}


def test_mean_errors_are_those_of_each_convolution_fed_exact_input(thresholds: dict[str, float]) -> None:
    model = residual()
    pairs = with_pairs(model, thresholds)
    found = mean_errors(model, pairs, INPUTS)
    assert set(found) == {"stem", "a", "b"}
    exact = inner_tensors(model, ["inner.out", "b.out"], INPUTS)
    scale = {tensor.name: numpy_helper.to_array(tensor) for tensor in pairs.graph.initializer}["inner.out.scale"]
    rounded = np.rint(exact["inner.out"] / scale).clip(-128, 127) * scale
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in pairs.graph.initializer}
    weight = weights["Wb.quantized"] * weights["Wb.scale"].reshape(-1, 1, 1, 1)
    padded = np.pad(rounded, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    got = np.einsum("nchwij,ocij->nohw", windows, weight)
    assert found["b"] == pytest.approx((got - exact["b.out"]).mean((0, 2, 3)), rel=1e-3, abs=1e-5)


def test_convolutions_along_one_axis_have_mean_errors_too() -> None:
    random = np.random.default_rng(1)
    weight = numpy_helper.from_array(random.normal(size=(4, 4, 3)).astype(np.float32), "W")
    shapes: tuple[list[int | str | None], ...] = (["batch", 4, 20], ["batch", 4, 18])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "W"], ["features"], name="only")],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, shapes[1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    inputs = random.normal(size=(6, 4, 20)).astype(np.float32)
    pairs = with_pairs(model, {"input": 1.0})
    error = outputs_of(pairs, inputs)["features"] - outputs_of(model, inputs)["features"]
    assert mean_errors(model, pairs, inputs)["only"] == pytest.approx(error.mean((0, 2)), rel=1e-3, abs=1e-5)


def test_a_convolution_in_half_precision_is_refused_by_name() -> None:
    model = residual()
    tensor = next(one for one in model.graph.initializer if one.name == "Wa")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "Wa"))
    with pytest.raises(PlanError, match="the weight of 'a' is in half precision; call .float"):
        check_float_weights(model, "tensorrt")
    check_float_weights(residual(), "tensorrt")


def test_corrected_convolutions_give_their_mean_for_exact_input(thresholds: dict[str, float]) -> None:
    """One without a bias gets one, and a bias that two nodes share is corrected for each."""
    model = residual()
    found = mean_errors(model, with_pairs(model, thresholds), INPUTS)
    corrected = subtract_from_biases(model, found)
    assert [len(node.input) for node in corrected.graph.node if node.op_type == "Conv"] == [3, 3, 3]
    # The exact inputs are the uncorrected graph's: what is corrected is what the convolutions make of them.
    again = mean_errors(model, with_pairs(corrected, thresholds), INPUTS)
    for name, values in again.items():
        assert np.abs(values).max() < 1e-4 * max(1.0, np.abs(found[name]).max()), name


@pytest.mark.parametrize(("share", "is_kept"), [(1, True), (4, False)])
def test_corrections_are_kept_where_they_bring_the_outputs_of_other_pictures_nearer(share: int, is_kept: bool) -> None:
    """With ranges that hold every value they do; clipped to a quarter, the errors are no shift alone."""
    model = residual()
    thresholds = {name: value / share for name, value in table_of(model).thresholds("minmax").items()}
    found, said = find_corrections(model, thresholds, BENCH)
    assert set(found) == ({"stem", "a", "b", "fc"} if is_kept else {"fc"})
    inputs, expected = BENCH.deciding, BENCH.expected
    assert not np.isin(inputs, BENCH.fitting).any()
    before = output_error(with_pairs(model, thresholds), inputs, expected)
    after = output_error(with_pairs(subtract_from_biases(model, found), thresholds), inputs, expected)
    assert np.abs(after.mean["logits"]).max() < 1e-4 * np.abs(expected["logits"]).max()
    if is_kept:
        assert after.share < before.share
        assert said == f"corrected the biases of 3 convolutions: {before.sqnr_db:.1f} -> {after.sqnr_db:.1f} dB"
    else:
        assert said == ""


def test_corrections_that_harm_are_not_kept(thresholds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()
    harm = {name: np.full(CHANNELS, 10, np.float32) for name in ("stem", "a", "b")}
    monkeypatch.setattr("exporter.lowering.bias_correction.mean_errors", lambda *_: harm)
    found, said = find_corrections(model, thresholds, BENCH)
    assert (set(found), said) == ({"fc"}, "")


def test_an_error_that_is_known_is_not_measured_again(thresholds: dict[str, float]) -> None:
    model = residual()
    known = BENCH.error(model, thresholds)
    found = find_corrections(model, thresholds, BENCH)
    assert str(find_corrections(model, thresholds, BENCH, known)) == str(found)
    perfect = replace(known, share=0.0)  # nothing is better
    assert set(find_corrections(model, thresholds, BENCH, perfect)[0]) == {"fc"}


def test_a_small_network_is_measured_on_more_pictures_than_a_large_one() -> None:
    """Of 6 x 6 pixels, and of 1,500 x 1,500: 60 thousand and 4 thousand million multiply-accumulates a picture."""
    small, large = residual(), residual()
    large.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1500
    large.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1500
    del large.graph.value_info[:]
    macs = [sum(macs_by_node(one).values()) for one in (small, large)]
    counts = [affordable_pictures(REPAIR_FORWARDS * one, FEWEST_DECIDING) for one in macs]
    assert counts == [MOST_PICTURES, FEWEST_DECIDING]
    bench = Bench.of(small, "tensorrt", np.concatenate([INPUTS] * 20))
    assert (len(bench.fitting), len(bench.deciding)) == (120, 120)
    alone = Bench.of(small, "tensorrt", INPUTS[:1])
    assert (len(alone.fitting), len(alone.deciding)) == (1, 1)


def test_the_classifier_absorbs_what_is_the_same_for_every_image(thresholds: dict[str, float]) -> None:
    model = residual()
    expected = outputs_of(model, INPUTS)
    assert classifier(model) == "fc"
    found = classifier_correction(model, BENCH.error(model, thresholds))
    pairs = with_pairs(subtract_from_biases(model, found), thresholds)
    error = outputs_of(pairs, BENCH.deciding)["logits"] - BENCH.expected["logits"]
    assert np.abs(error.mean(0)).max() < 1e-4 * np.abs(expected["logits"]).max()
    table = replace(table_of(model), calibrator="mse", corrections={"mse": {"fc": [1.0, 2.0, 3.0]}})
    biased = outputs_of(with_classifier_correction(model, table), INPUTS)["logits"]
    assert expected["logits"] - biased == pytest.approx(np.tile([1.0, 2.0, 3.0], (len(INPUTS), 1)), abs=1e-3)


def test_features_have_no_classifier_to_correct(thresholds: dict[str, float]) -> None:
    model = graph_of(conv("stem", "input"), op("Relu", "stem.out", output="pool"), outputs=("pool",))
    assert classifier(model) is None
    bench = Bench.of(model, "tensorrt", INPUTS)
    assert classifier_correction(model, bench.error(model, {"input": 3.0})) == {}
    assert with_classifier_correction(model, None) is model


def test_the_calibrator_is_the_one_whose_outputs_are_nearest() -> None:
    model = residual()
    table = table_of(model)
    spoilt = {
        name: replace(tensor, thresholds={kind: value / 50 for kind, value in tensor.thresholds.items()})
        for name, tensor in table.tensors.items()
    }
    for kind in ("entropy", "minmax"):
        only = {
            name: replace(one, thresholds={**one.thresholds, kind: table.tensors[name].thresholds[kind]})
            for name, one in spoilt.items()
        }
        spoilt_table = replace(table, tensors=only)
        name, said, error = choose_calibrator(model, spoilt_table, BENCH)
        assert name == kind
        assert said.startswith(f"took the ranges of {kind}: ")
        assert error.share == BENCH.error(model, spoilt_table.thresholds(kind)).share


def test_error_of_logits_leaves_out_what_changes_no_class_and_what_is_the_same_for_every_image() -> None:
    model = residual()
    expected = outputs_of(model, INPUTS)
    shifted = {"logits": expected["logits"] + np.arange(12, dtype=np.float32)[:, None]}
    shifted["logits"] += np.array([5, 0, -5], np.float32)
    error = output_error(model, INPUTS, shifted)
    assert error.share < 1e-9
    assert error.mean["logits"] == pytest.approx(-(5.5 + np.array([5, 0, -5])), abs=1e-3)
