"""`resnet-deploy build`: every way in which a build by TensorRT-RTX can be refused or fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builds import TARGETS, engines, quiet
from manifest_edits import rewrite_manifest
from onnx import numpy_helper
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from spoilt import replace_file

from exporter import ExportPlan, export
from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions
from runtimes import Bundle
from runtimes.errors import BackendUnavailable, BuildError, BundleError, PlanError, UnknownName
from runtimes.specs import BatchRange


def test_tensorrt_itself_is_asked_for_with_the_way_to_get_it(run: Any, bundle: Path) -> None:
    shown = run("build", bundle)
    assert shown.code == 3
    assert "needs the package 'tensorrt'" in shown.error
    assert "--system-site-packages" in shown.error
    shown = run("build", bundle, "--target", "sm86")
    assert (shown.code, "--target is for tensorrt-rtx" in shown.error) == (2, True)
    assert "add --backend tensorrt-rtx" in shown.error


def test_help_says_what_is_built_for_without_a_target(run: Any) -> None:
    said = " ".join(run("build", "--help").out.split())
    assert "[default: all that tensorrt-rtx has; tensorrt builds for this machine's GPU]" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "sm87"], 2, "unknown target 'sm87'; did you mean sm"),
        (["--target", "x"], 2, "unknown target 'x'; choose from sm120"),
        (["--dla", "0"], 2, "no DLA; leave it out"),
        (["--timing-cache", "cache.bin"], 2, "times none; leave it out"),
        (["--version-compatible"], 2, "leave it out"),
        (["--hardware-compatible", "ampere-plus"], 2, "every GPU with --target"),
        (["--strip-weights"], 2, "needs a GPU"),
        (["--workspace", "0"], 2, "--workspace"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_it_cannot_take_are_refused_and_nothing_is_left(
    run: Any, bundle: Path, options: list[str], code: int, said: str
) -> None:
    shown = run("build", bundle, "--backend", "tensorrt-rtx", *options)
    assert shown.code == code
    assert said in shown.error
    assert engines(bundle) == []


def test_stripping_does_not_go_with_int8(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda document: document.update(precision="int8"))
    with pytest.raises(PlanError, match="--strip-weights does not go with int8"):
        BuildPlan(Bundle.open(bundle), "tensorrt", BuildOptions(strip_weights=True))


def test_a_bundle_that_promises_more_than_its_graph_is_refused_and_accepted_when_told(run: Any, bundle: Path) -> None:
    rewrite_manifest(bundle, lambda document: document.update(precision="int8"))
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert (
        "the bundle promises int8, but 21 of its convolutions run otherwise (21 fp16): conv1, layer1.0.conv1"
        in shown.error
    )
    assert "--allow-fallback-layers" in shown.error
    assert engines(bundle) == []
    accepted = run("build", bundle, *TARGETS, "--allow-fallback-layers", "--json").json
    assert len(accepted["layers"]["fallback"]) == 21


def quantized_by_onnxruntime(bundle: Path, original: Bundle, **options: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches = iter([{"input": np.load(bundle / "golden.npz")["inputs"][:4]}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(original.file("model.onnx"), bundle.parent / "theirs.onnx", Reader(), **options)
    return (bundle.parent / "theirs.onnx").read_bytes()


def test_a_graph_that_tensorrt_refuses_is_named_by_node_with_the_remedy(
    run: Any, bundle: Path, shipped_bundle: Any
) -> None:
    replace_file(bundle, "model.onnx", quantized_by_onnxruntime(bundle, shipped_bundle("fp32")))
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "TensorRT refuses model.onnx at " in shown.error
    assert "export it with resnet-export --int8" in shown.error
    assert engines(bundle) == []


def test_a_bias_of_another_type_is_named_by_its_node(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.0.conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias).astype(np.float32), bias.name))
    replace_file(bundle, "model.onnx", model.SerializeToString())
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "layer1.0.conv1 (Conv)" in shown.error
    assert "its types are mixed; export it again with resnet-export" in shown.error


@pytest.mark.parametrize("data", [b"", b"rubbish" * 100])
def test_a_model_file_that_is_none_is_a_build_error(run: Any, bundle: Path, data: bytes) -> None:
    replace_file(bundle, "model.onnx", data)
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "TensorRT refuses model.onnx" in shown.error
    assert engines(bundle) == []


def test_inputs_that_the_manifest_does_not_know_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    wrong = replace(
        opened, manifest=replace(opened.manifest, inputs=(replace(opened.manifest.inputs[0], name="pixels"),))
    )
    with pytest.raises(BuildError, match="expected the inputs pixels, as the manifest says, got input"):
        build_engine(BuildPlan(wrong, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)


def test_a_batch_range_that_the_graph_cannot_take_is_refused(exported: Path, tmp_path: Path) -> None:
    fixed = export(
        ExportPlan("resnet20", tmp_path / "fixed", precision="fp16", batch=BatchRange(4, 4, 4), reference=False)
    ).folder
    opened = Bundle.open(fixed)
    wrong = replace(opened, manifest=replace(opened.manifest, batch=BatchRange(1, 2, 8)))
    with pytest.raises(BuildError, match="the engine could not be built: .*export it again with --batch"):
        build_engine(BuildPlan(wrong, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)
    assert build_engine(
        BuildPlan(opened, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet
    ).facts.batch == BatchRange(4, 4, 4)


def test_an_unknown_builder_is_told_the_known_ones(bundle: Path) -> None:
    with pytest.raises(UnknownName, match="unknown builder 'tensorrt_x'"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt_x"), quiet)


def test_a_parser_too_old_for_the_opset_is_refused_with_the_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite_manifest(bundle, lambda document: document.update(opset=22, precision="bf16"))
    monkeypatch.setattr("exporter.engines.build.NEWEST_OPSETS", {"tensorrt-rtx": ((99, 0), 20)})
    with pytest.raises(BackendUnavailable, match=r"needs opset 22 \(bf16\), and .* reads none above 20; update"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt-rtx"), quiet)


def test_a_bundle_that_cannot_be_written_to_says_so(bundle: Path) -> None:
    (bundle / "engines").write_text("a file where the folder should be")
    with pytest.raises(BundleError, match="cannot write .*engines"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)
