"""`resnet-export FILE.onnx --int8` keeps the scales of a file that is quantized already, or takes them off where it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stranger_elsewhere import ELSEWHERE, elsewhere
from stranger_graphs import Made
from stranger_makers import MAKERS
from stranger_readings import pictures, scores

from exporter import ExportPlan, export
from exporter.lowering.qdq.lint import lint
from exporter.lowering.qdq.lint_cpu import lint_for_processors
from exporter.lowering.requantize.mend import is_quantized
from exporter.pipeline.export import Export
from exporter.verification.blocks.drift import drift_of_bundle
from exporter.verification.report.reproduce import export_lines
from runtimes import open_runtime
from runtimes._open import open_reference
from runtimes.bundle import Bundle
from runtimes.errors import ParityError, PlanError
from runtimes.parity.measures import sqnr_db


def export_of(made: Made, folder: Path, **changes: Any) -> Export:
    onnx.save(made.model, folder / "model.onnx")
    told: dict[str, Any] = {"mean": made.reading.mean, "std": made.reading.std, "precision": "int8", "report": False}
    return export(ExportPlan(str(folder / "model.onnx"), folder / "out", **{**told, **changes}))


def ratio_db(result: Export, made: Made) -> float:
    """The bundle's answers against what onnxruntime makes of the file as it came, without optimising it."""
    inputs = made.reading.network_input(pictures(32, made.reading.size))
    expected = scores(made.model.SerializeToString(), inputs, made.reading.output)
    with open_runtime(result.folder) as runtime:
        found = runtime.run({"input": inputs})["logits"]
    return sqnr_db(expected - expected.mean(1, keepdims=True), found - found.mean(1, keepdims=True))


@pytest.mark.parametrize(("name", "least_db"), [("qat_torch", 35), ("qdq_int8", 22)])
def test_trained_scales_reach_a_graph_that_tensorrt_takes(name: str, least_db: float, tmp_path: Path) -> None:
    made = MAKERS[name]()
    result = export_of(made, tmp_path)
    graph = onnx.load(result.folder / "model.onnx")
    report = lint(graph)
    assert report is not None
    assert not [one for one in report.findings if one.kind not in ("left in float", "not fused")]
    assert report.convolutions == (6, 6)
    assert ratio_db(result, made) > least_db
    assert result.manifest.calibration is None
    before = {float(value) for value in scales_of(made.model)}
    after = {float(value) for value in scales_of(graph)}
    assert all(any(abs(one / other - 1) < 1e-3 for other in before) for one in after)  # rounded to FP16


def scales_of(model: onnx.ModelProto) -> list[float]:
    """The scales of all QuantizeLinear of activations."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    found = [
        constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]
    return [float(value.ravel()[0]) for value in found]


@pytest.mark.parametrize("name", ["qoperator", "qdq_uint8", "qdq_int8"])
def test_a_processor_runs_a_quantized_file_on_integers(name: str, tmp_path: Path) -> None:
    made = MAKERS[name]()
    result = export_of(made, tmp_path, target="cpu")
    report = lint_for_processors(onnx.load(result.folder / "model.onnx"))
    assert report is not None
    assert report.convolutions == (6, 6)
    assert result.manifest.kernels is not None
    assert ratio_db(result, made) > 20


@pytest.mark.parametrize("name", ["qoperator", "qdq_uint8"])
def test_zero_points_are_refused_for_tensorrt_with_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected INT8 with a zero point of 0, got UINT8 .* take --recalibrate"):
        export_of(MAKERS[name](), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_file_itself_is_what_everything_is_held_against(tmp_path: Path) -> None:
    made = MAKERS["qoperator"]()
    result = export_of(made, tmp_path, target="cpu")
    bundle, inputs = Bundle.open(result.folder), made.reading.network_input(pictures(5, made.reading.size))
    assert (result.folder / "reference.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    with open_reference(bundle) as reference:
        found = reference.run({"input": inputs})["logits"]
    assert np.array_equal(found, scores(tmp_path / "model.onnx", inputs, "logits"))


@pytest.mark.parametrize(("name", "target"), [("qat_torch", "tensorrt"), ("qdq_int8", "cpu"), ("qoperator", "cpu")])
def test_blocks_of_a_quantized_file_are_followed(name: str, target: str, tmp_path: Path) -> None:
    """Where a block ends, the float network behind the file differs by the file's own rounding, which adds up."""
    made = MAKERS[name]()
    result = export_of(made, tmp_path, target=target)
    inputs = made.reading.network_input(pictures(4, made.reading.size))
    drift = drift_of_bundle(Bundle.open(result.folder), inputs)
    assert drift.blocks == ("stem", "blocks.0", "blocks.1", "head")
    ratios = [one.sqnr_db for one in drift.stages[0].blocks]
    assert 35 < ratios[0] < 60
    assert ratios[:3] == sorted(ratios[:3], reverse=True)
    assert min(ratios) > 15


def test_the_float_network_behind_a_quantized_file(tmp_path: Path) -> None:
    made = MAKERS["qat_torch"]()
    result = export_of(made, tmp_path, precision="fp32", dequantize=True)
    assert not is_quantized(onnx.load(result.folder / "model.onnx"))
    assert not is_quantized(onnx.load(result.folder / "reference.onnx"))
    assert ratio_db(result, made) > 30
    source = result.manifest.source_file
    assert source is not None
    assert source.steps[0] == "quantization removed: the float network behind it is the reference"
    assert "--dequantize" in export_lines(result.manifest)[0]


def test_a_quantized_file_is_quantized_anew_where_that_is_asked(pictures_folder: Path, tmp_path: Path) -> None:
    made = MAKERS["qdq_uint8"]()
    result = export_of(made, tmp_path, recalibrate=True, data=str(pictures_folder), allow_few_images=True)
    assert result.manifest.calibration is not None
    assert (result.folder / "calibration.json").exists()
    assert "--recalibrate" in export_lines(result.manifest)[0]


@pytest.fixture
def pictures_folder(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(pictures(330, (64, 64), seed=7)):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_a_refusal_names_what_is_left_to_try(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"its scales are the file's own: take --recalibrate, or --dequantize --fp16"):
        export_of(MAKERS["qdq_int8"](), tmp_path, budget={"min_sqnr_db": 60.0})


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qdq_int8", {"precision": "fp16"}, "model.onnx is quantized already, and --fp16 is not; take --int8"),
        ("qdq_int8", {"calibrator": "mse"}, "--calibrator is about ranges that are measured, .* add --recalibrate"),
        ("qdq_int8", {"min_agreement": 99.0, "data": "built-in"}, "--min-agreement is about ranges that are measured"),
        ("qdq_int8", {"dequantize": True}, "--dequantize exports the float network .* take --recalibrate"),
        (
            "qdq_int8",
            {"recalibrate": True, "precision": "fp16"},
            "--recalibrate measures ranges anew, and fp16 has none",
        ),
        ("legacy_17", {"recalibrate": True, "data": "built-in"}, "--recalibrate is about files that are quantized"),
        ("legacy_17", {"dequantize": True, "precision": "fp16"}, "--dequantize is about files that are quantized"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=says):
        export_of(MAKERS[name](), tmp_path, **changes)


def test_options_about_files_are_refused_for_networks_of_pytorch(tmp_path: Path) -> None:
    for option in ("keep_softmax", "dequantize", "recalibrate"):
        changes: dict[str, Any] = {option: True}
        with pytest.raises(PlanError, match="is about ONNX files, and resnet20 is none"):
            ExportPlan("resnet20", tmp_path, "fp32", **changes)


QUANTIZED = [name for name in ELSEWHERE if not name.startswith(("tf2onnx", "keras"))]
TAKEN_BY_TENSORRT = ("modelopt_fp32", "modelopt_fp16")
"""Made with zero points of 0; the others' defaults are for processors."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_files_of_other_tools_keep_their_scales(name: str, target: str, tmp_path: Path) -> None:
    file = elsewhere(name)
    reading = file.reading
    told: dict[str, Any] = {"mean": reading.mean, "std": reading.std, "scale": reading.scale, "report": False}
    plan = ExportPlan(str(file.path), tmp_path / "out", "int8", target=target, **told)
    if target == "tensorrt" and name not in TAKEN_BY_TENSORRT:
        with pytest.raises(PlanError, match="take --recalibrate"):
            export(plan)
        return
    result = export(plan)
    inputs = reading.network_input(pictures(16, reading.size))
    expected = scores(file.path, reading.file_input(pictures(16, reading.size)), reading.output)
    with open_runtime(result.folder) as runtime:
        found = runtime.run({"input": inputs})["logits"]
    assert sqnr_db(expected - expected.mean(1, keepdims=True), found - found.mean(1, keepdims=True)) > 22
