"""`resnet-deploy inspect` of ONNX files: rules, versions, strictness, annotations, and the builder's own verdict."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from qdq_graphs import FLOAT, HALF, ROWS, SIDE, convolved, residual
from residual_graphs import residual as float_residual
from rule_graphs import GRAPHS, alone, down, half_convolution, with_function

from exporter.cli import _lint
from exporter.engines import verdict as verdicts
from exporter.engines.verdict import BuilderVerdict, builder_verdict
from runtimes.errors import BackendUnavailable

ASIDE = "TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7"


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """A graph as a file."""

    def write(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / name)  # the checker wants shapes of outputs
        return tmp_path / name

    return write


def test_a_finding_is_a_line_with_its_rule_first_and_the_last_line_counts(deploy: Any, file: Any) -> None:
    shown = deploy("inspect", file(residual("inside", "float shortcut")))
    lines = [line.strip() for line in shown.out.splitlines()]
    assert shown.code == 0
    assert [line.split(":")[0] for line in lines if line.startswith("RE")] == [
        "RE213 warning, not fused",
        "RE216 warning, not fused",
    ]
    assert (
        lines[-1] == f"linted       2 warnings, for {ASIDE}; each rule: the page Rules of this project's documentation"
    )


def test_a_float_file_is_linted_too(deploy: Any, file: Any) -> None:
    clean = deploy("inspect", file(float_residual()), "--strict")
    assert clean.code == 0
    assert clean.out.splitlines()[-1] == f"linted       no findings, for {ASIDE}"
    shown = deploy("inspect", file(GRAPHS["RE301"]()))
    assert "RE301 error, refused: Conv of " in shown.out
    shown = deploy("inspect", file(GRAPHS["RE130"]()))
    assert shown.code == 0
    assert "findings     RE130 error, refused: Dropout of 't3': Dropout is in training mode" in shown.out


def test_an_export_of_ours_has_neither_errors_nor_warnings(deploy: Any, exported: Path) -> None:
    assert deploy("inspect", exported / "model.onnx", "--strict").code == 0


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        ("RE216", 4, "expected no errors and no warnings, got 1 warning; mend them, or drop --strict"),
        ("RE109", 4, "expected no errors and no warnings, got 1 error, 1 warning; mend them, or drop --strict"),
        ("RE221", 0, ""),
        ("RE305", 0, ""),
    ],
)
def test_strict_refuses_errors_and_warnings_and_no_notes(
    deploy: Any, file: Any, number: str, code: int, said: str
) -> None:
    shown = deploy("inspect", file(GRAPHS[number]()), "--strict")
    assert (shown.code, said in shown.err) == (code, True)
    assert number in shown.out


def test_json_holds_every_finding(deploy: Any, file: Any) -> None:
    found = deploy("inspect", file(residual("float shortcut")), "--json", "--strict")
    assert found.code == 4
    (one,) = found.json["findings"]
    assert {name: one[name] for name in ("rule", "severity", "kind", "url")} == {
        "rule": "RE216",
        "severity": "warning",
        "kind": "not fused",
        "url": "docs/rules.md#re216",
    }
    assert one["node"].startswith("Add of ")
    assert one["message"].startswith("the shortcut is not quantized")
    assert one["block"]
    assert found.json["counts"] == {"error": 0, "warning": 1, "note": 0}
    assert found.json["qdq"]["blocks"]
    assert found.json["builder"] is None
    assert deploy("inspect", file(float_residual()), "--json").json["findings"] == []


def test_github_annotates_the_file_and_writes_a_summary(
    deploy: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    path = file(residual("gate", "inside"), "a,b.onnx")
    shown = deploy("inspect", path, "--github")
    place = str(path).replace(",", "%2C")
    commands = [line for line in shown.out.splitlines() if line.startswith("::")]
    assert commands[0].startswith(
        f"::warning file={place},title=RE213 A pair between a convolution and its activation::RE213 not fused: Conv of "
    )
    assert [line.split(" ")[0] for line in commands] == ["::warning", "::notice"]
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("### ⚠️ ")
    assert "| RE213 | warning |" in summary
    quiet = deploy("inspect", path, "--github", "--json")
    assert quiet.json["counts"]["warning"] == 1
    assert "::warning file=" in quiet.err


def test_github_outside_of_a_workflow_is_refused(deploy: Any, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    shown = deploy("inspect", file(convolved()), "--github")
    assert (shown.code, "leave the option out" in shown.error) == (2, True)


def test_a_version_is_judged_by_its_own_limits(deploy: Any, file: Any) -> None:
    path = file(alone(lambda g: g.node("Relu", "x"), opset=22))
    assert "RE401 warning, unknown: opset: it is of opset 22" in deploy("inspect", path).out
    newer = deploy("inspect", path, "--target-trt", "10.16", "--strict")
    assert (newer.code, newer.out.splitlines()[-1]) == (0, "linted       no findings, for TensorRT 10.16")
    assert deploy("inspect", path, "--target-trt", "10.3", "--strict").code == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target-trt", "9"), "unknown TensorRT version '9'; choose from 10.16, 10.3, 11.4, rtx"),
        (("--target-trt", "10.16", "--dla"), "TensorRT 10.16 has no DLA on any board; give --target-trt 10.3 or 11.4"),
        (("--target", "cpu", "--build"), "--build is for TensorRT, and --target is cpu; leave one of them out"),
        (("--target", "cpu", "--target-trt", "rtx"), "--target-trt is for TensorRT"),
        (("--target", "npu"), "unknown target 'npu'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    deploy: Any, file: Any, options: tuple[str, ...], said: str
) -> None:
    shown = deploy("inspect", file(convolved()), *options)
    assert (shown.code, said in shown.error) == (2, True), shown.error


@pytest.mark.parametrize("option", [("--strict",), ("--build",), ("--github",), ("--dla",), ("--target-trt", "rtx")])
def test_options_of_onnx_files_are_refused_for_bundles(
    deploy: Any, exported: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    shown = deploy("inspect", exported, *option)
    assert shown.code == 2
    assert f"{option[0]} is for ONNX files, and {exported} is none; give {exported}/model.onnx" in shown.error
    shown = deploy("inspect", tmp_path, *option)
    assert (shown.code, f"{tmp_path} is none; leave it out" in shown.error) == (2, True)


def test_dla_is_judged_where_it_is_asked_for(deploy: Any, file: Any) -> None:
    half = file(alone(lambda g: g.node("GlobalAveragePool", half_convolution(g, down(g))), gives=HALF))
    assert "RE8" not in deploy("inspect", half).out
    shown = deploy("inspect", half, "--dla")
    assert "RE802 warning, not on DLA: GlobalAveragePool of " in shown.out
    assert shown.out.splitlines()[-1].startswith("linted       1 warning, for TensorRT 10.3, TensorRT 11.4")
    assert "RE804" in deploy("inspect", file(convolved()), "--dla", "--target-trt", "10.3").out
    assert "RE804" not in deploy("inspect", file(convolved()), "--dla", "--target-trt", "11.4").out


def test_processors_are_judged_by_their_rules(deploy: Any, file: Any) -> None:
    shown = deploy("inspect", file(convolved()), "--target", "cpu")
    assert "RE704 warning, runs in float: Conv of " in shown.out
    assert (
        shown.out.splitlines()[-1]
        == "linted       1 warning, for processors; each rule: the page Rules of this project's documentation"
    )


def test_the_builders_verdict_stands_beside_the_linters(deploy: Any, file: Any) -> None:
    taken = deploy("inspect", file(residual()), "--build", "--strict")
    assert taken.code == 0
    assert "takes it; its convolutions read 3 int8" in taken.out
    assert "disagreement" not in taken.out
    refused = deploy("inspect", file(GRAPHS["RE115"]()), "--build", "--json").json
    assert "Non-zero zero point" in refused["builder"]["refusal"]
    assert refused["builder"]["disagreements"] == []
    other = deploy("inspect", file(residual()), "--build", "--target-trt", "10.3")
    assert "(it is not TensorRT 10.3, which cannot be tried here)" in other.out


def test_free_sizes_are_built_with_pictures_and_said(deploy: Any, file: Any) -> None:
    model = alone(lambda g: g.node("Relu", "x"), shape=("batch", 16, "height", "width"))
    assert "takes it; built with x 1x16x224x224" in deploy("inspect", file(model), "--build").out


def test_an_input_that_is_a_size_is_built_with_ones(deploy: Any, file: Any) -> None:
    model = alone(lambda g: g.node("Expand", "x", g.given("sizes", TensorProto.INT64, 4)))
    value = onnx.helper.make_tensor_value_info(model.graph.output[0].name, FLOAT, ("a", "b", "c", "d"))
    model.graph.output[0].CopyFrom(value)
    assert "takes it; built with sizes = 1x1x1x1" in deploy("inspect", file(model), "--build").out


def test_a_parser_that_crashes_is_a_refusal(deploy: Any, file: Any) -> None:
    shown = deploy("inspect", file(GRAPHS["RE112"]()), "--build")
    assert shown.code == 0
    assert "refuses it: the parser or the builder crashed: its process was ended by SIG" in shown.out
    assert "disagreement" not in shown.out


@pytest.mark.parametrize(
    ("model", "verdict", "said"),
    [
        (residual, BuilderVerdict("B 1", "no such layer", {}, {}), "the linter found no reason"),
        (GRAPHS["RE115"], BuilderVerdict("B 1", "", {}, {"int8": 1}), "it is refused (RE115), and the builder takes"),
        (residual, BuilderVerdict("B 1", "", {}, {"int8": 2, "fp32": 1}), "counts 3 convolutions in INT8, and the bu"),
    ],
)
def test_where_they_disagree_it_is_said(
    deploy: Any,
    file: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    verdict: BuilderVerdict,
    said: str,
) -> None:
    monkeypatch.setattr(_lint, "_verdict", lambda path: verdict)
    shown = deploy("inspect", file(model()), "--build", "--strict")
    (line,) = [line for line in shown.out.splitlines() if line.startswith("disagreement")]
    assert said in line
    assert line.endswith("trust the builder")
    assert shown.code == (0 if not verdict.refusal and model is residual else 4)


@pytest.mark.parametrize("opset", [21, 17])
def test_convolutions_in_functions_are_not_counted_against_the_linter(deploy: Any, file: Any, opset: int) -> None:
    model = alone(lambda g: g.node("Net", g.pair("x"), g.weight(), domain="local"), opset=21)
    model.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info(model.graph.output[0].name, FLOAT, (1, ROWS, SIDE - 2, SIDE - 2))
    )
    shown = deploy("inspect", file(with_function(model, opset)), "--build")
    assert "takes it" in shown.out
    assert "disagreement" not in shown.out


def test_without_the_builder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, file: Any) -> None:
    path = file(convolved())
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tensorrt_rtx":
            raise ImportError("none", name="tensorrt_rtx")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailable, match="pip install tensorrt-rtx-cu13"):
        builder_verdict(str(path))
    assert BackendUnavailable.exit_code == 3
    assert verdicts.REMEDY == "pip install tensorrt-rtx-cu13"
