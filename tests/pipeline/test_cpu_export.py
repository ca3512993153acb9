"""`resnet-export --int8 --target cpu`: the bundle, its checks, and the refusals around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Ran, run_main
from int8_exports import BATCH, pictures_fixture  # noqa: F401  # pytest finds the fixture by its name
from manifest_edits import rewrite_manifest

from exporter.cli import deploy, export
from runtimes import Bundle, Runtime, open_runtime
from runtimes.backends import _integer_kernels
from runtimes.kernels import KernelCount
from runtimes.onnx_metadata import metadata_of
from runtimes.parity.golden import golden_arrays
from runtimes.processor import Processor

PROMISED = KernelCount(21, 21, 9, 9)
Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*arguments: object) -> Ran:
        main = export.main if arguments[0] == "resnet20" else deploy.main
        return run_main(main, arguments, capsys, monkeypatch)

    return command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "resnet20-int8-cpu"
    given = ("--int8", "--target", "cpu", "--data", pictures, "--output", path, "--quiet", *BATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", "resnet20", *map(str, given)])
        with pytest.raises(SystemExit) as left:
            export.main()
    assert left.value.code == 0
    return path


def ran_beside_promised(runtime: Runtime) -> KernelCount:
    """onnxruntime counts the addition of the classifier's bias as well."""
    found = runtime.kernels()
    assert found is not None
    return found.beside(PROMISED)


def test_the_bundle_promises_integers_and_is_proven_by_the_kernels_that_run_them(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert (manifest.name, manifest.precision, manifest.target) == ("resnet20-int8-cpu", "int8", "cpu")
    assert manifest.kernels == PROMISED
    assert list(manifest.parity.backends) == ["onnxruntime", "simulation"]
    assert min(one.sqnr_db for one in manifest.parity.backends.values()) > 33
    assert manifest.calibration is not None
    (said,) = (one for one in manifest.calibration.repairs if "the classifier" in one)
    assert manifest.graph.types["QuantizeLinear"] == {"FLOAT": 33 if said.startswith("quantized") else 31}
    assert metadata_of(bundle / "model.onnx") == {"precision": "int8", "target": "cpu", "kernels": "integers"}
    assert f"<dt>Kernels</dt><dd>{PROMISED} promised</dd>" in (bundle / "report.html").read_text(encoding="utf-8")
    with open_runtime(bundle) as runtime:
        assert ran_beside_promised(runtime) == PROMISED
        assert runtime.details["int8"].startswith("on integers")


def test_a_check_says_what_ran_on_integers(bundle: Path, run: Run) -> None:
    ran = run("check", bundle, "--backend", "onnxruntime")
    assert ran.code == 0
    assert "kernels      onnxruntime: 21 of 21 convolutions and 9 of 9 additions on integers\n" in ran.out
    assert "onnxruntime: int8 on integers" in ran.out
    assert "--target cpu" not in ran.out


def test_fewer_than_promised_is_an_error(bundle: Path, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    rewrite_manifest(copy, lambda one: one["kernels"].update(convolutions=22, integer_convolutions=22))
    ran = run("check", copy, "--backend", "onnxruntime", "--json")
    assert ran.code == 1
    (backend,) = ran.json["bundles"][0]["backends"]
    assert backend["verdict"] == "failed"
    assert backend["reason"] == (
        "the bundle promises 22 of 22 convolutions and 9 of 9 additions on integers; 21 convolutions and 9 additions "
        "ran there"
    )


def test_without_vnni_the_kernels_are_told_not_to_overflow(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = golden_arrays(Bundle.open(bundle))
    with open_runtime(bundle) as runtime:
        expected = runtime.run({"input": inputs})["logits"]
    monkeypatch.setattr(_integer_kernels, "processor", lambda: Processor("an older one", ("avx2",)))
    with open_runtime(bundle) as runtime:
        assert runtime.details == {"int8": "on integers, by kernels that do not overflow without VNNI"}
        assert ran_beside_promised(runtime) == PROMISED
        found = runtime.run({"input": inputs})["logits"]
    assert abs(found - expected).max() < 0.05 * abs(expected).max()  # here the entry changes nothing, or one step


def test_the_table_serves_tensorrt_too(bundle: Path, run: Run, pictures: Path, tmp_path: Path) -> None:
    given = ("--int8", "--data", pictures, "--calibration", bundle / "calibration.json", "--output", tmp_path / "b")
    ran = run("resnet20", *given, "--json", "--quiet", *BATCH)
    assert ran.code == 0
    assert (ran.json["target"], ran.json["kernels"]) == ("tensorrt", None)
    assert (tmp_path / "b" / "calibration.json").stat().st_size > 10_000


def test_inspect_judges_a_file_for_what_it_was_exported_for(bundle: Path, run: Run) -> None:
    shown = run("inspect", bundle / "model.onnx").out
    assert "quantized    21 of 21 convolutions, 9 of 9 additions; for processors\n" in shown
    assert "layer1.0             2 of 2 convolutions INT8, addition INT8, on integers\n" in shown
    assert "TensorRT refuses this graph" in run("inspect", bundle / "model.onnx", "--target", "tensorrt").out


def test_tensorrt_is_not_built_of_it(bundle: Path, run: Run) -> None:
    ran = run("build", bundle)
    assert ran.code == 2
    assert ran.error == (
        "error: the bundle is for cpu, and TensorRT refuses its unsigned numbers; export it again with --target tensorrt"
    )


@pytest.mark.parametrize("option", [("--target", "cpu"), ("--cpu-safe",)])
def test_a_target_needs_int8(run: Run, option: tuple[str, ...]) -> None:
    ran = run("resnet20", "--fp16", *option)
    assert ran.code == 2
    assert (
        ran.error
        == f"error: --target {'cpu' if len(option) == 2 else 'cpu-safe'} needs --int8: fp16 is the same for every target"
    )


def test_cpu_safe_is_a_target(run: Run) -> None:
    shown = run("resnet20", "--int8", "--cpu-safe", "--dry-run", "--json").json
    assert (shown["target"], shown["output"]) == ("cpu-safe", "resnet20-int8-cpu-safe")
