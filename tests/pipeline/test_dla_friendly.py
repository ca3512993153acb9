"""`resnet-export --dla-friendly`: proven as any export is, told again in full, and built by a real builder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import Ran, run_main
from rounding import needs_rounding
from rtx_builds import build_in_precision

from exporter.cli import export as export_cli
from exporter.graph.dla_head import NOT_ON_DLA
from exporter.pipeline.plan import ExportPlan
from exporter.verification.report.reproduce import export_lines
from runtimes import Bundle, Manifest
from runtimes.errors import PlanError
from runtimes.manifest import Asked, json_from_manifest, manifest_from_json
from runtimes.specs import BatchRange

ONE = BatchRange(1, 1, 1)


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    return lambda *arguments: run_main(export_cli.main, arguments, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp32"}, "needs --fp16 or --int8"),
        ({"precision": "bf16"}, "needs --fp16 or --int8"),
        ({"precision": "int8", "target": "cpu"}, "--target cpu about processors"),
        ({"batch": BatchRange(1, 8, 32)}, "needs one batch size, got 1:8:32"),
        ({"uint8_input": "full"}, "--uint8-input full takes any"),
        ({"features": "pool"}, "--features leaves it out"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_any_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as refused:
        ExportPlan(
            **{
                "model": "resnet18",
                "output": Path(),
                "precision": "fp16",
                "batch": ONE,
                "dla_friendly": True,
                **changes,
            }
        )
    assert said in str(refused.value)


def test_its_name_and_the_dry_run_say_so(export: Callable[..., Ran]) -> None:
    assert ExportPlan("resnet18", Path(), precision="int8", batch=ONE, dla_friendly=True).name == "resnet18-dla-int8"
    asked = ("resnet18", "--fp16", "--batch", "1", "--dla-friendly", "--dry-run")
    assert export(*asked, "--json").json["dla_friendly"] is True
    assert "dla_friendly yes" in export(*asked).out
    assert "dla_friendly" not in export("resnet18", "--dry-run").out


def test_the_manifest_keeps_it_and_the_reproduce_command_has_it(manifest: Manifest) -> None:
    friendly = replace(manifest, asked=Asked(dla_friendly=True))
    assert "--dla-friendly" in export_lines(friendly)[0].split()
    assert "--dla-friendly" not in export_lines(manifest)[0]
    assert manifest_from_json(json_from_manifest(friendly), where="here").asked.dla_friendly
    older = json_from_manifest(manifest).replace(b',\n    "dla_friendly": false', b"")
    assert b"dla_friendly" not in older
    assert not manifest_from_json(older, where="here").asked.dla_friendly


@pytest.mark.slow
@needs_rounding
@pytest.mark.parametrize("options", [["--fp16"], ["--int8", "--uint8-input"]], ids=["fp16", "int8"])
def test_a_named_network_is_proven_checked_and_built(
    options: list[str], tmp_path: Path, export: Callable[..., Ran], deploy: Callable[..., Ran]
) -> None:
    folder = tmp_path / "resnet20"
    ran = export("resnet20", *options, "--dla-friendly", "--batch", "2", "--output", folder)
    assert ran.code == 0, ran.err
    bundle = Bundle.open(folder)
    assert (bundle.manifest.parity.ok, bundle.manifest.asked.dla_friendly) == (True, True)
    graph = onnx.load(folder / "model.onnx").graph
    assert not {node.op_type for node in graph.node} & {*NOT_ON_DLA, "Gemm"}
    found = deploy("inspect", folder / "model.onnx", "--dla", "--target-trt", "11.4", "--strict", "--json").json
    assert [one["rule"] for one in found["findings"] if one["severity"] != "note"] == []
    assert deploy("check", folder, "--backend", "onnxruntime", "--blocks", "--budget", "min_agreement=0.9").code == 0
    build_in_precision(bundle, BatchRange(2, 2, 2), frozenset({"linear", "fc"}))


@pytest.mark.slow
@needs_rounding
def test_a_file_and_a_checkpoint_are_written_so_too(
    shipped_bundle: Any, tmp_path: Path, export: Callable[..., Ran]
) -> None:
    source = shipped_bundle("fp32")
    file = tmp_path / "net.onnx"
    file.write_bytes(source.file("model.onnx").read_bytes())
    steps = source.manifest.preprocess
    told = ["--mean", steps.mean[0], "--std", steps.std[0]]
    for name, options in (
        ("file", [file, *told]),
        ("random", ["resnet18", "--weights", "random", "--image-size", "64"]),
    ):
        ran = export(*options, "--fp16", "--dla-friendly", "--batch", "2", "--output", tmp_path / name)
        assert ran.code == 0, ran.err
        operators = {node.op_type for node in onnx.load(tmp_path / name / "model.onnx").graph.node}
        assert {"AveragePool", "Reshape"} < operators
        assert not operators & {*NOT_ON_DLA, "Gemm"}
    ran = export("resnet18", "--weights", "random", "--image-size", "288", "--fp16", "--dla-friendly", "--batch", "1")
    assert (ran.code, "pools a map of 9x9" in ran.error) == (2, True)
