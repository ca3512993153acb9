"""`--uint8-input full`: bundles that take pictures of any size, and the commands that make, check and evaluate them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from any_size import bundles_fixture, noise  # noqa: F401  # pytest finds it by its name
from classified import assert_classified_as_by_the_reference
from commands import Ran, run_main
from PIL import Image
from rounding import RUNNABLE, runs_here

from calibration.data import built_in, open_source
from calibration.one_size import fitting_size
from exporter import ExportPlan, export
from exporter.cli import deploy
from exporter.engines.builders import BuildOptions, Job, tensorrt_rtx
from exporter.graph.pillow_resize import with_any_size
from exporter.graph.pixel_input import with_uint8_input
from exporter.lowering.qdq.lint import lint
from exporter.lowering.registry import precision_names
from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, PlanError
from runtimes.parity.golden import golden_arrays, golden_report
from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES, TensorSpec

# --- bundles ---


@pytest.mark.parametrize("precision", precision_names())
def test_a_bundle_takes_pictures_of_any_size_and_is_proven_against_pillow_outside(bundles: Any, precision: str) -> None:
    bundle = bundles(precision)
    manifest = bundle.manifest
    assert manifest.inputs == (TensorSpec("input", "uint8", ("batch", "height", "width", 1)),)
    assert (manifest.name, manifest.parity.ok) == (f"resnet20-uint8full-{precision}", True)
    assert manifest.accuracy is not None
    assert manifest.accuracy.reference_top1 > 0.94  # built-in pictures are proven with as they are
    inputs, golden = golden_arrays(bundle)
    assert (inputs.dtype.name, inputs.shape[1:]) == (
        "uint8",
        (*fitting_size(manifest.preprocess), 1),
    )  # and travel enlarged
    with open_runtime(bundle, "pytorch") as runtime:
        reference = runtime.run({"input": manifest.preprocess.inputs_from_pixels(inputs, any_size=True)})["logits"]
        assert golden_report(bundle, "pytorch", runtime).ok
    np.testing.assert_allclose(golden["logits"], reference, rtol=1e-4, atol=1e-4)
    if runs_here(precision):
        with open_runtime(bundle) as runtime:
            assert golden_report(bundle, "onnxruntime", runtime).ok


def test_int8_is_measured_as_without_resizing_and_the_resizing_is_no_residual_block(bundles: Any) -> None:
    bundle = bundles("int8")
    assert bundle.manifest.calibration is not None
    model = onnx.load(bundle.file("model.onnx"))
    report = lint(model)
    assert report is not None
    assert (report.convolutions, report.shortcuts) == ((21, 21), (9, 9))
    assert not report.refused
    assert all(
        tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
        for tensor in model.graph.initializer
        if "resize." in tensor.name
    )


def test_the_first_convolution_is_given_what_preprocessing_outside_gives_borders_too(tiny_model: Path) -> None:
    steps = Preprocess(None, (28, 28), "bilinear", True, (0.286,), (0.353,))
    model = onnx.load(tiny_model / "model.onnx")
    full = with_any_size(with_uint8_input(model, steps), steps)
    for graph in (model, full):
        graph.graph.output.append(onnx.ValueInfoProto(name="conv1.out"))
    with (
        OnnxRuntime.from_bytes(model.SerializeToString()) as outside,
        OnnxRuntime.from_bytes(full.SerializeToString()) as inside,
    ):
        for size in ((28, 28), (20, 31), (31, 20), (5, 5)):  # padded with black on one side, both or none
            picture = noise(*size, channels=1)
            expected = outside.run({"input": steps(picture)[None]})["conv1.out"]
            found = inside.run({"input": steps.picture(picture)[None]})["conv1.out"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_pictures_of_different_sizes_are_classified_as_by_the_reference(bundles: Any) -> None:
    images = [
        built_in("test").image(place).resize(size)
        for place, size in enumerate([(28, 28), (50, 37), (20, 31), (300, 200), (9, 9)])
    ]
    assert_classified_as_by_the_reference(bundles("fp32"), images)


def test_onnxruntime_on_a_gpu_says_what_to_take_instead(bundles: Any) -> None:
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(
            BackendUnavailable, match=f"size on the CPU, expected all of the model on '{provider}'; build an engine"
        ):
            open_runtime(bundles("fp32"), provider=provider)


# --- commands ---


def test_resnet_deploy_run_takes_each_picture_at_its_own_size(
    bundles: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for place, size in enumerate([(28, 28), (90, 61)]):
        paths.append(tmp_path / f"{place}.png")
        built_in("test").image(0).convert("RGB").resize(size).save(paths[-1])
    told: Ran = run_main(deploy.main, ("run", bundles(RUNNABLE).folder, *paths, "--top", "1"), capsys, monkeypatch)
    assert told.out.count("Ankle boot") == 2
    shown: Ran = run_main(deploy.main, ("inspect", bundles(RUNNABLE).folder), capsys, monkeypatch)
    assert "input uint8 batchxheightxwidthx1" in shown.out


def test_the_command_takes_it_together_with_features_a_size_and_a_fixed_batch(run: Any) -> None:
    given = (
        "--weights",
        "random",
        "--mean",
        "0.4,0.5,0.6",
        "--std",
        "0.2",
        "--image-size",
        "32x40",
        "--batch",
        "2",
        "--features",
        "stages",
        "--fp16",
    )
    made = run("resnet20", "--uint8-input", "full", *given)
    assert made.code == 0
    manifest = Bundle.open(Path("resnet20-stages-uint8full-fp16")).manifest
    assert manifest.inputs == (TensorSpec("input", "uint8", (2, "height", "width", 3)),)
    assert [spec.name for spec in manifest.outputs] == ["layer1", "layer2", "layer3"]
    with open_runtime("resnet20-stages-uint8full-fp16") as runtime:
        assert runtime.run({"input": np.zeros((1, 77, 55, 3), np.uint8)})["layer1"].shape == (1, 16, 32, 40)
    model = Path("resnet20-stages-uint8full-fp16/model.onnx").read_bytes()
    job = Job(model, "fp16", manifest.inputs, manifest.batch, BuildOptions(targets=("sm86",)))
    built, _ = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    assert f"MinShape: [2,{PICTURE_SIDES[0]},{PICTURE_SIDES[0]},3]" in built.log.text


def test_a_dry_run_says_what_goes_in(run: Any) -> None:
    assert (
        "uint8 pixels, (batch, height, width, channels), pictures of any size"
        in run("resnet20", "--uint8-input", "full", "--dry-run").out
    )
    assert (
        run("resnet20", "--uint8-input", "--dry-run", "--json").json["input"]
        == "uint8 pixels, (batch, height, width, channels)"
    )
    assert (
        run("--uint8-input", "full", "resnet20", "--fp16", "--dry-run", "--json").json["output"]
        == "resnet20-uint8full-fp16"
    )


@pytest.mark.parametrize(
    "arguments",
    [("--uint8-input", "resnet20"), ("resnet20", "--uint8-input", "any"), ("resnet20", "--uint8-input", "")],
)
def test_another_word_behind_the_option_is_refused_even_a_model(run: Any, arguments: tuple[str, ...]) -> None:
    told = run(*arguments)
    assert told.code == 2
    assert re.search(
        r"expected --uint8-input alone or --uint8-input full, got '(resnet20|any|)'; put MODEL before it", told.error
    )


def test_a_model_that_no_picture_fits_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="and the model has 4; take --uint8-input without full"):
        export(
            ExportPlan("resnet20", tmp_path / "four", weights="random", mean=(0.0,) * 4, std=(1.0,), uint8_input="full")
        )


# --- checked and evaluated on pictures of several sizes ---


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """A folder of classes; every other picture has a black border, which the crop takes off again."""
    source = built_in("test")
    assert source.labels is not None
    assert source.classes is not None
    for place in range(24):
        picture = source.image(place)
        if place % 2:
            bordered = Image.new("L", (36, 34))
            bordered.paste(picture, (4, 3))
            picture = bordered
        path = tmp_path / "garments" / source.classes[source.labels[place]].replace("/", "-") / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "garments"


def test_pictures_of_several_sizes_are_evaluated_each_at_its_own(bundles: Any, garments: Path, deploy: Any) -> None:
    found = deploy("eval", bundles("fp32").folder, "--data", garments, "--json", "--quiet").json
    with open_runtime(bundles("fp32"), "pytorch") as runtime:
        source = open_source(str(garments))
        steps = bundles("fp32").manifest.preprocess
        answers = runtime.run({"input": steps.batch([source.image(place) for place in range(source.count)])})[
            "logits"
        ].argmax(1)
    assert source.labels is not None
    assert source.classes is not None
    names = [name.replace("/", "-") for name in bundles("fp32").labels or ()]
    labels = np.array([names.index(source.classes[label]) for label in source.labels])
    assert (found["images"], found["top1"]["correct"]) == (24, int((answers == labels).sum()))


def test_pictures_of_several_sizes_are_brought_to_one_to_be_checked(
    bundles: Any, garments: Path, deploy: Any, tmp_path: Path
) -> None:
    arguments = (
        "--backend",
        "onnxruntime",
        "--data",
        garments,
        "--html",
        tmp_path / "report.html",
        "--json",
        "--quiet",
    )
    shown = deploy("check", bundles("fp16").folder, *arguments)
    assert shown.code == 0
    (checked,) = shown.json["bundles"]
    assert (checked["images"], checked["backends"][0]["verdict"]) == (24, "ok")
    assert checked["backends"][0]["answer"]["accuracy"]["images"] == 24
    assert b"<html" in (tmp_path / "report.html").read_bytes()


def test_golden_pictures_of_any_size_are_checked(bundles: Any, deploy: Any) -> None:
    found = deploy("check", bundles(RUNNABLE).folder, "--json", "--quiet").json
    verdicts = {one["backend"]: one["verdict"] for one in found["bundles"][0]["backends"]}
    assert (verdicts["onnxruntime"], verdicts["pytorch"]) == ("ok", "ok")
