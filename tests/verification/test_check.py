"""`resnet-deploy check`: every backend that is here against the golden logits, and what is said of those that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import crashing
import pytest
from junit import cases
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from spoilt import answer_nan, replace_file

from exporter.verification import check
from exporter.verification import own_process as isolated
from exporter.verification.check import check_bundle
from exporter.verification.plan import CheckPlan
from runtimes import Bundle
from runtimes._open import local_backend_names
from runtimes.parity.golden import golden_arrays


def test_every_backend_is_listed_and_those_here_are_in_budget(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 0
    here = ("onnxruntime", "openvino", "pytorch")
    assert tuple(line.split()[0] for line in shown.out.splitlines()[2:5]) == here
    assert "batch 1, 8, 32" in shown.out
    assert "tensorrt     not here: backend 'tensorrt' needs the package 'tensorrt'" in shown.out
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "resnet20-fp16",
        "0",
        "0",
        "2",
    )
    found = cases(tmp_path / "junit.xml")
    assert int(suite.get("tests") or 0) == len(found)
    limits = ("finite", "max_relative_error", "min_agreement", "max_batch_difference")
    expected = {f"resnet20-fp16.{backend}.{limit}" for backend in here for limit in limits}
    assert set(found) == expected | {"resnet20-fp16.tensorrt.answers", "resnet20-fp16.tensorrt-rtx.answers"}
    assert found["resnet20-fp16.tensorrt.answers"].find("skipped") is not None
    assert set(local_backend_names()) == {name.split(".")[1] for name in found}


def test_json_has_each_backends_verdict_and_figures(run: Any, bundle: Path) -> None:
    answer = run("check", bundle, "--backend", "onnxruntime", "--json", "--quiet").json
    (checked,) = answer["bundles"]
    (one,) = checked["backends"]
    assert (answer["ok"], checked["ok"], checked["images"], one["verdict"]) == (True, True, 32, "ok")
    assert one["answer"]["report"]["batches"] == [1, 8, 32]
    measured = one["answer"]["report"]["backends"]["onnxruntime"]
    assert measured["max_relative_error"] < 1e-2
    verdicts = {limit["name"]: limit["verdict"] for limit in one["answer"]["limits"]}
    assert verdicts == dict.fromkeys(("finite", "max_relative_error", "min_agreement", "max_batch_difference"), "ok")
    assert 0 <= measured["max_batch_difference"] < 1e-2
    histogram = one["answer"]["errors"]
    assert sum(histogram["counts"]) + histogram["exact"] == 32 * 10  # each image once
    assert len(histogram["decades"]) == len(histogram["counts"]) + 1


def test_a_broken_budget_ends_with_4_and_is_a_failure_in_junit(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run(
        "check",
        bundle,
        "--backend",
        "onnxruntime",
        "--budget",
        "max_relative_error=1e-9",
        "--junit",
        tmp_path / "junit.xml",
    )
    assert shown.code == 4
    assert "error: resnet20-fp16: onnxruntime is out of budget: largest relative error" in shown.err
    assert "budget <= 1e-09" in shown.err
    assert "onnxruntime: largest relative error" in shown.out
    assert "parity " not in shown.err  # the table is on stdout already
    found = cases(tmp_path / "junit.xml")
    failure = found["resnet20-fp16.onnxruntime.max_relative_error"].find("failure")
    assert failure is not None
    assert "largest relative error" in (failure.get("message") or "")
    assert found["resnet20-fp16.onnxruntime.min_agreement"].find("failure") is None


def test_the_table_of_a_broken_budget_stands_on_stderr_where_stdout_is_json(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "onnxruntime", "--budget", "max_relative_error=1e-9", "--json", "--quiet")
    assert (shown.code, shown.json["ok"]) == (4, False)
    assert shown.err.startswith("parity ")


def test_answers_that_are_not_finite_are_out_of_budget(run: Any, bundle: Path) -> None:
    answer_nan(bundle)
    shown = run("check", bundle, "--backend", "onnxruntime")
    assert shown.code == 4
    assert "not finite" in shown.err
    (line,) = (line.split() for line in shown.out.splitlines() if line.startswith("onnxruntime  "))
    assert line == ["onnxruntime", "-", "-", "-", "-", "-", "0.00%", "0.00%", "32", "(32)", "OUT", "OF", "BUDGET"]


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        (crashing.segfaults, "its process was ended by SIGSEGV"),
        (crashing.leaves, "its process ended with exit code 3 and no answer"),
    ],
)
def test_a_backend_that_crashes_takes_nobody_along(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, crash: Any, reason: str
) -> None:
    opened = Bundle.open(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(check, "_run_backend", crash)
        (crashed,) = check_bundle(CheckPlan(opened, ["pytorch"]))[0].backends
    assert (crashed.verdict, crashed.answer) == ("crashed", None)
    assert crashed.reason.startswith(reason)
    (other,) = check_bundle(CheckPlan(opened, ["onnxruntime"]))[0].backends
    assert other.verdict == "ok"


def test_a_process_that_dies_before_it_has_read_its_task_is_not_waited_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert golden_arrays(Bundle.open(bundle))[0].nbytes > 1 << 16  # more than a pipe holds
    monkeypatch.setattr(isolated, "_serve", crashing.leaves)
    (crashed,) = check_bundle(CheckPlan(Bundle.open(bundle), ["onnxruntime"]))[0].backends
    assert (crashed.verdict, crashed.reason) == (
        "crashed",
        "its process ended with exit code 3 and no answer; run it alone with --backend to see what it prints",
    )


@pytest.mark.parametrize("hung", ["_run_backend", "_serve"])
def test_a_backend_that_hangs_is_given_up_after_its_time(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, hung: str
) -> None:
    monkeypatch.setattr(check if hung == "_run_backend" else isolated, hung, crashing.hangs)
    (late,) = check_bundle(CheckPlan(Bundle.open(bundle), ["onnxruntime"], timeout_s=2))[0].backends
    assert (late.verdict, late.answer, late.seconds < 60) == ("failed", None, True)
    assert (
        late.reason
        == "no answer within 2 s; give a longer --timeout, or run it alone with --backend to see what it prints"
    )


def test_time_enough_is_no_limit(run: Any, bundle: Path) -> None:
    assert run("check", bundle, "--backend", "onnxruntime", "--timeout", "600").code == 0
    assert "Invalid value for '--timeout'" in run("check", bundle, "--timeout", "0").err
    assert "expected a timeout of more than 0 seconds, got nan" in run("check", bundle, "--timeout", "nan").error
    assert run("check", bundle, "--backend", "onnxruntime", "--timeout", "1e300").code == 0


def test_a_crash_ends_with_1_and_the_others_still_report(run: Any, bundle: Path, tmp_path: Path) -> None:
    # onnxruntime runs; the program is no program, which is a failure of pytorch alone
    replace_file(bundle, "reference.pt2", b"no program")
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 1
    assert "resnet20-fp16: pytorch failed: pytorch cannot load" in shown.err
    assert next(line for line in shown.out.splitlines() if line.startswith("onnxruntime")).endswith("ok")
    found = cases(tmp_path / "junit.xml")
    assert found["resnet20-fp16.pytorch.answers"].find("error") is not None


def test_a_backend_asked_for_that_is_not_here_ends_with_3(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--backend", "tensorrt", "--junit", tmp_path / "junit.xml")
    assert shown.code == 3
    assert cases(tmp_path / "junit.xml")["resnet20-fp16.tensorrt.answers"].find("error") is not None
    assert "tensorrt cannot answer: backend 'tensorrt' needs the package" in shown.err


def test_a_backend_named_twice_answers_once(run: Any, bundle: Path) -> None:
    (checked,) = run("check", bundle, "--backend", "onnxruntime", "--backend", "onnxruntime", "--json", "--quiet").json[
        "bundles"
    ]
    assert len(checked["backends"]) == 1


def test_no_backend_here_ends_with_3(run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.verification.parity_toml.local_backend_names", lambda: ("tensorrt", "tensorrt-rtx"))
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 3
    assert all(case.find("error") is not None for case in cases(tmp_path / "junit.xml").values())
    assert "tensorrt cannot answer" in shown.err


# --- GitHub ---


def test_github_gets_a_summary_and_an_annotation_for_each_broken_limit(
    run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    shown = run("check", bundle, "--backend", "onnxruntime", "--budget", "max_relative_error=1e-9", "--github")
    assert shown.code == 4
    (line,) = [line for line in shown.out.splitlines() if line.startswith("::error")]
    assert line.startswith("::error title=resnet20-fp16 on onnxruntime::largest relative error ")
    summary = (tmp_path / "summary.md").read_text()
    assert "resnet20-fp16" in summary
    assert "| onnxruntime | out of budget |" in summary
    run("check", bundle, "--backend", "onnxruntime", "--github")
    assert (tmp_path / "summary.md").read_text().count("### ") == 2  # added to what other steps wrote


def test_github_outside_a_workflow_is_refused(run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    shown = run("check", bundle, "--github")
    assert (shown.code, "is not set here" in shown.error) == (2, True)
