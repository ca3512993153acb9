"""A bundle that was made from an ONNX file is checked against that file, wherever other bundles are against PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from spoilt import with_file
from stranger_graphs import CAFFE, caffe_bgr
from stranger_makers import MAKERS
from stranger_readings import pictures

from exporter import ExportPlan, export
from exporter.verification.blocks.drift import drift_of_bundle
from exporter.verification.report.reproduce import export_lines
from runtimes import open_runtime
from runtimes.bundle import Bundle
from runtimes.errors import BundleError, ParityError

TOLD: dict[str, Any] = {"mean": CAFFE.mean, "std": CAFFE.std, "scale": 255, "channels_order": "bgr"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "caffe.onnx"
    onnx.save(caffe_bgr().model, path)
    return path


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    """An FP16 bundle of a network of Caffe, with its report."""
    return export(ExportPlan(str(source), source.parent / "caffe-fp16", "fp16", **TOLD)).folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, pixels in enumerate(pictures(9, (80, 70), seed=3)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_pictures_are_held_against_the_file(made: Path, folder: Path, deploy: Any) -> None:
    ran = deploy("check", made, "--data", folder, "--backend", "onnxruntime")
    assert ran.code == 0, ran.err
    assert "run the file caffe.onnx on 9 images" in ran.err
    assert "against the file caffe.onnx" in ran.out


def test_blocks_are_followed_from_the_file_on(made: Path, deploy: Any) -> None:
    ran = deploy("check", made, "--blocks", "--backend", "onnxruntime")
    assert ran.code == 0, ran.err
    assert "against the reference, errors relative to the block's largest value" in ran.out
    with np.load(made / "golden.npz") as golden:
        drift = drift_of_bundle(Bundle.open(made), golden["inputs"])
    assert drift.blocks == ("stem", "res2a", "res2b", "head")
    exact = drift.stages[0]
    assert exact.name == "onnx fp32"
    assert all(one.relative_error < 1e-5 for one in exact.blocks)


def test_blocks_that_mend_it_are_found(made: Path, deploy: Any) -> None:
    ran = deploy("check", made, "--bisect", "--budget", "min_sqnr_db=90", "--backend", "onnxruntime")
    assert ran.code == 4
    assert "in FP32 mend it" in ran.out


def test_two_bundles_of_one_file_are_compared(made: Path, source: Path, tmp_path: Path, deploy: Any) -> None:
    other = export(ExportPlan(str(source), tmp_path / "fp32", "fp32", report=False, **TOLD)).folder
    ran = deploy("check", made, "--against", other, "--backend", "onnxruntime")
    assert ran.code == 0, ran.err


def test_the_report_and_inspect_name_the_file(made: Path, deploy: Any) -> None:
    report = (made / "report.html").read_text()
    assert "the file caffe.onnx" in report
    assert "caffe.onnx (an ONNX file), file weights, 10 classes" in report
    assert "45 weights no longer listed as inputs" in report
    shown = deploy("inspect", made)
    assert "caffe.onnx (an ONNX file), 10 classes" in shown.out
    assert "45 weights no longer listed as inputs" in shown.out


def test_the_command_that_is_printed_makes_the_same_bundle(made: Path, source: Path, tmp_path: Path, run: Any) -> None:
    shutil.copy(source, tmp_path / "caffe.onnx")
    command, *notes = export_lines(Bundle.open(made).manifest)
    words = command.replace("\\\n", " ").split()
    assert run(*words[1:], "--output", "again").code == 0
    first, again = (Bundle.open(one).manifest for one in (made, tmp_path / "again"))
    assert {name: facts.sha256 for name, facts in again.files.items() if name != "report.html"} == {
        name: facts.sha256 for name, facts in first.files.items() if name != "report.html"
    }
    assert notes == [
        f"# caffe.onnx: the ONNX file of sha256 {first.model.weights.sha256}",
        "# and --data, where it was proven on other pictures than the built-in ones",
    ]


def test_inspect_shows_how_a_file_is_fed(source: Path, deploy: Any) -> None:
    shown = deploy("inspect", source)
    assert "input        data FLOAT 1x3x64x64" in shown.out
    assert "output       prob FLOAT 1x10" in shown.out


def test_a_file_that_fails_on_the_built_in_pictures_is_told_of_data(source: Path, tmp_path: Path) -> None:
    plan = ExportPlan(str(source), tmp_path / "out", "fp16", budget={"max_relative_error": 1e-9}, report=False, **TOLD)
    with pytest.raises(ParityError, match="tried on the built-in pictures of clothes: give --data with pictures like"):
        export(plan)


def test_the_summary_names_a_few_nodes_and_the_manifest_all(tmp_path: Path, run: Any) -> None:
    made = MAKERS["qdq_int8"]()
    onnx.save(made.model, tmp_path / "model.onnx")
    ran = run("model.onnx", "--int8", *made.reading.told(), "--no-report", "--output", "out")
    assert ran.code == 0, ran.err
    biases = next(line for line in ran.out.splitlines() if "INT32 bias" in line)
    assert biases.endswith(" and 3 more")
    source_file = Bundle.open(tmp_path / "out").manifest.source_file
    assert source_file is not None
    assert any("INT32 bias" in said and said.count("', '") == 6 for said in source_file.steps)


@pytest.mark.parametrize("kind", ["crop", "full"])
def test_a_file_may_take_pixels(kind: str, source: Path, made: Path, tmp_path: Path) -> None:
    plan = ExportPlan(str(source), tmp_path / "out", "fp32", report=False, uint8_input=kind, **TOLD)
    folder, pixels = export(plan).folder, pictures(4, (64, 64))
    inputs = CAFFE.network_input(pixels)
    with open_runtime(made) as one, open_runtime(folder) as other:
        expected, found = one.run({"input": inputs})["logits"], other.run({"input": pixels})["logits"]
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


def test_a_bundle_without_its_reference_says_so(made: Path, folder: Path, tmp_path: Path, deploy: Any) -> None:
    bare = with_file(Bundle.open(made), tmp_path / "bare", "reference.onnx", None)
    ran = deploy("check", bare.folder, "--data", folder, "--backend", "onnxruntime")
    assert (ran.code, "has no reference.onnx" in ran.err) == (3, True)
    with np.load(made / "golden.npz") as golden, pytest.raises(BundleError, match=r"has no reference\.onnx to follow"):
        drift_of_bundle(bare, golden["inputs"])


def test_a_reference_that_is_no_model_is_refused(made: Path, tmp_path: Path) -> None:
    spoilt = with_file(Bundle.open(made), tmp_path / "spoilt", "reference.onnx", b"rubbish")
    with np.load(made / "golden.npz") as golden, pytest.raises(BundleError, match="is no ONNX model: .*; export the"):
        drift_of_bundle(spoilt, golden["inputs"])
