"""Files that onnxruntime.quantization quantized, in both of its formats: what is kept of them, held against the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat
from quantized_files import answers, network, operators, quantized, sqnr_db

from exporter.lowering.precisions import int8
from exporter.lowering.qdq.lint import lint
from exporter.lowering.qdq.lint_cpu import lint_for_processors
from exporter.lowering.requantize.mend import dequantized, is_quantized, mended, trained_ranges, with_pairs
from runtimes.errors import PlanError

LAYOUTS = (QuantFormat.QDQ, QuantFormat.QOperator)
TYPES = ("S8S8", "U8S8", "U8U8")
SYMMETRIC = {"ActivationSymmetric": True}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("types", TYPES)
def test_operators_on_integers_become_pairs_of_the_same_values(tmp_path: Path, types: str, layout: QuantFormat) -> None:
    file = quantized(tmp_path, types, layout=layout)
    assert is_quantized(file)
    written = with_pairs(file)
    onnx.checker.check_model(written, full_check=True)
    assert operators(written) <= {
        *operators(network()),
        "QuantizeLinear",
        "DequantizeLinear",
    }
    assert sqnr_db(answers(written), answers(file)) > 45  # integer kernels round halves otherwise


def test_a_float_network_is_not_quantized(tmp_path: Path) -> None:
    assert not is_quantized(network())
    assert not is_quantized(dequantized(quantized(tmp_path)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("types", TYPES)
def test_the_float_network_behind_a_file_has_its_weights_and_its_relus(
    tmp_path: Path, types: str, layout: QuantFormat, symmetric: bool
) -> None:
    file = quantized(tmp_path, types, layout=layout, options={"ActivationSymmetric": symmetric})
    behind = dequantized(file)
    assert operators(behind) == operators(network())
    assert sum(node.op_type == "Relu" for node in behind.graph.node) == 5
    exact = answers(network())
    assert sqnr_db(answers(behind), exact) > sqnr_db(answers(file), exact)  # the rounding of activations is gone
    stored = {
        tuple(np.rint(numpy_helper.to_array(tensor).ravel()[:4] * 1e6))
        for tensor in dequantized(behind).graph.initializer
    }
    kept = {tuple(np.rint(numpy_helper.to_array(tensor).ravel()[:4] * 1e6)) for tensor in behind.graph.initializer}
    assert stored == kept


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("types", TYPES)
def test_symmetric_files_reach_tensorrt_with_their_scales(
    tmp_path: Path, types: str, per_channel: bool, layout: QuantFormat
) -> None:
    options = {"ActivationSymmetric": True, "WeightSymmetric": True}
    file = quantized(tmp_path, types, layout=layout, per_channel=per_channel, options=options)
    result = mended(file, "tensorrt")
    report = lint(result.model)
    assert report is not None
    assert report.findings == ()
    assert report.convolutions == (6, 6)
    assert report.shortcuts == (2, 2)
    assert sqnr_db(answers(int8.simulation(result.model)), answers(file)) > 38
    said = " ".join(result.said)
    assert "on the convolution's side of an addition" in said
    assert "moved behind the ReLU" in said or "Relu" not in operators(file)
    assert {np.dtype(np.float16)} == {
        one.dtype for one in map(numpy_helper.to_array, result.model.graph.initializer) if one.dtype.kind == "f"
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("types", TYPES)
def test_all_of_them_reach_processors(tmp_path: Path, types: str, symmetric: bool, layout: QuantFormat) -> None:
    file = quantized(tmp_path, types, layout=layout, options={"ActivationSymmetric": symmetric})
    result = mended(file, "cpu")
    report = lint_for_processors(result.model)
    assert report is not None
    assert report.findings == ()
    assert report.convolutions == (6, 6)
    assert report.shortcuts == (2, 2)
    assert sqnr_db(answers(result.model), answers(file)) > 37


def test_old_opsets_may_have_scales_for_each_channel(tmp_path: Path) -> None:
    model = network()
    model.opset_import[0].version = 12
    file = quantized(tmp_path, "U8S8", layout=QuantFormat.QOperator, model=model)
    assert file.opset_import[0].version == 12
    assert sqnr_db(answers(mended(file, "cpu").model), answers(file)) > 37


@pytest.mark.parametrize(
    ("types", "what"),
    [("U8S8", "got UINT8 with 124 at 'input_QuantizeLinear'"), ("S8S8", "got INT8 with -4 at 'input_QuantizeLinear'")],
)
def test_zero_points_are_refused_for_tensorrt(tmp_path: Path, types: str, what: str) -> None:
    with pytest.raises(PlanError) as refusal:
        mended(quantized(tmp_path, types), "tensorrt")
    said = str(refusal.value)
    assert what in said
    assert "TensorRT takes zero points of 0 alone" in said
    assert said.endswith("take --recalibrate, quantize again symmetrically to INT8, or take --target cpu")


def test_weights_with_zero_points_are_refused_for_tensorrt(tmp_path: Path) -> None:
    file = quantized(tmp_path, "U8U8", per_channel=False, options=SYMMETRIC)
    with pytest.raises(PlanError, match="expected weights with zero points of 0, all that TensorRT takes, got UINT8"):
        mended(file, "tensorrt")


@pytest.mark.parametrize(
    "options",
    [{"AddQDQPairToWeight": True}, {"DedicatedQDQPair": True}, {"QDQDisableWeightAdjustForInt32Bias": True}],
    ids=lambda options: next(iter(options)),
)
def test_the_same_file_written_otherwise_gives_the_same_graph(tmp_path: Path, options: dict[str, bool]) -> None:
    plain = mended(quantized(tmp_path, options=SYMMETRIC)).model
    other = mended(quantized(tmp_path, options={**SYMMETRIC, **options})).model
    np.testing.assert_array_equal(answers(int8.simulation(plain)), answers(int8.simulation(other)))
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in other.graph.node]


def test_other_activations_keep_their_pairs_for_processors_alone(tmp_path: Path) -> None:
    file = quantized(tmp_path, options=SYMMETRIC, model=network("HardSwish"))
    for_processors, for_tensorrt = mended(file, "cpu"), mended(file, "tensorrt")
    report = lint_for_processors(for_processors.model)
    assert report is not None
    assert report.findings == ()
    assert report.convolutions == (6, 6)
    found = lint(for_tensorrt.model)
    assert found is not None
    assert found.findings == ()
    assert any("between a convolution and its HardSwish" in one for one in for_tensorrt.said)
    assert sqnr_db(answers(for_processors.model), answers(file)) > 33
    assert sqnr_db(answers(int8.simulation(for_tensorrt.model)), answers(file)) > 33


@pytest.mark.parametrize("target", ["tensorrt", "cpu", "cpu-safe"])
def test_our_own_graphs_come_back_as_they_are(target: str) -> None:
    model = network()
    ranges = dict.fromkeys(int8.observed_tensors(model, target), 4.0)
    own = int8.lower(model, ranges, target)
    again = mended(own, target).model
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in own.graph.node]
    np.testing.assert_array_equal(answers(again), answers(own))


def test_the_ranges_are_those_that_the_pairs_hold() -> None:
    model = network()
    observed = int8.observed_tensors(model)
    ranges = {name: 1.0 + place for place, name in enumerate(observed)}
    found = trained_ranges(int8.lower(model, ranges))
    for name in observed:
        assert found[name] == pytest.approx(ranges[name], rel=1e-3)  # the scales are FP16 numbers


def test_weights_whose_rounding_was_computed_ahead_keep_their_grid(tmp_path: Path) -> None:
    """As tf2onnx writes TensorFlow's networks: the pairs of weights are constants, and folded into floats."""
    file = quantized(tmp_path, options=SYMMETRIC)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    folded = onnx.ModelProto()
    folded.CopyFrom(file)
    del folded.graph.node[:]
    for node in file.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            folded.graph.node.append(node)
            continue
        values, scales = stored[node.input[0]], stored[node.input[1]]
        shape = (-1, *[1] * (values.ndim - 1)) if scales.ndim else ()
        exact = (values.astype(np.float32) * scales.reshape(shape)).astype(np.float32)
        folded.graph.initializer.append(numpy_helper.from_array(exact, node.output[0]))
    found, kept = mended(folded), mended(file)
    report = lint(found.model)
    assert report is not None
    assert report.convolutions[0] == report.convolutions[1] > 0
    assert sqnr_db(answers(found.model), answers(kept.model)) > 60
    assert any("weight stored in float quantized by the largest value" in said for said in found.said)
