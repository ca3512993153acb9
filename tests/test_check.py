"""`resnet-deploy check`: every backend that is here against the golden logits, and what is said when one does not keep to them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import crashing
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter import ExportPlan, check, export
from exporter.check import CheckPlan, check_bundle
from runtimes import Bundle, backend_names


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(ExportPlan("resnet20", tmp_path_factory.mktemp("check") / "resnet20-fp16", precision="fp16")).folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def run(deploy: Any) -> Any:
    return deploy


def replaced(bundle: Path, name: str, data: bytes) -> None:
    """Put another file into the bundle, with its sha256 in the manifest."""
    (bundle / name).write_bytes(data)
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(document))


def test_every_backend_is_listed_and_those_here_are_in_budget(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 0
    assert [line.split()[0] for line in shown.out.splitlines()[1:3]] == ["onnxruntime", "pytorch"]
    assert "batch 1, 8, 32" in shown.out
    assert "tensorrt     not here: backend 'tensorrt' needs the package 'tensorrt'" in shown.out
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert [case.get("name") for case in suite.iter("testcase")] == list(backend_names())
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert {case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None} >= {"tensorrt"}


def test_json_has_each_backends_verdict_and_figures(run: Any, bundle: Path) -> None:
    answer = run("check", bundle, "--backend", "onnxruntime", "--json", "--quiet").json
    (one,) = answer["backends"]
    assert (answer["ok"], one["verdict"], one["report"]["batches"]) == (True, "ok", [1, 8, 32])
    assert one["report"]["backends"]["onnxruntime"]["max_relative_error"] < 1e-2


def test_a_broken_budget_ends_with_4_and_is_a_failure_in_junit(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--backend", "onnxruntime", "--max-error", "1e-9", "--junit", tmp_path / "junit.xml")
    assert shown.code == 4
    assert "error: onnxruntime is out of budget: largest relative error" in shown.err
    assert "budget <= 1.00e-09" in shown.err
    failure = next(ElementTree.parse(tmp_path / "junit.xml").iter("failure"))
    assert "largest relative error" in (failure.get("message") or "")


def test_answers_that_are_not_finite_are_out_of_budget(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    replaced(bundle, "model.onnx", model.SerializeToString())
    shown = run("check", bundle, "--backend", "onnxruntime")
    assert shown.code == 4
    assert "not finite" in shown.err


@pytest.mark.parametrize(
    ("crash", "reason"),
    [(crashing.segfaults, "its process was ended by SIGSEGV"), (crashing.leaves, "its process ended with exit code 3 and no answer")],
)
def test_a_backend_that_crashes_takes_nobody_along(bundle: Path, monkeypatch: pytest.MonkeyPatch, crash: Any, reason: str) -> None:
    opened = Bundle.open(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(check, "_answer", crash)
        (crashed,) = check_bundle(opened, ["pytorch"])
    assert (crashed.verdict, crashed.report) == ("crashed", None)
    assert crashed.reason.startswith(reason)
    (other,) = check_bundle(opened, ["onnxruntime"])
    assert other.verdict == "ok"


def test_a_backend_asked_for_that_is_not_here_ends_with_3(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "tensorrt")
    assert shown.code == 3
    assert "tensorrt cannot answer: backend 'tensorrt' needs the package" in shown.err


def test_an_unknown_backend_is_told_the_nearest(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "onnx-runtime")
    assert shown.code == 1
    assert "did you mean onnxruntime" in shown.err


@pytest.mark.parametrize("data", [b"", b"rubbish"])
def test_a_golden_file_that_is_none_is_named(run: Any, bundle: Path, data: bytes) -> None:
    replaced(bundle, "golden.npz", data)
    shown = run("check", bundle, "--backend", "onnxruntime")
    assert shown.code == 1
    assert "golden.npz does not hold golden inputs" in shown.err


def test_a_missing_or_changed_golden_file_makes_the_bundle_unreadable(run: Any, bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes(b"changed")
    assert "golden.npz was changed" in run("check", bundle).error
    (bundle / "golden.npz").unlink()
    shown = run("check", bundle)
    assert (shown.code, "golden.npz is missing" in shown.error) == (1, True)


def test_junit_into_a_folder_that_is_not_there_is_refused_before_the_work(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--junit", tmp_path / "nowhere" / "junit.xml")
    assert shown.code == 2
    assert "there is no folder" in shown.error
