"""`resnet-deploy check --budget`: which limits there are, which of them are judged, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Made
from junit import cases
from manifest_edits import rewrite_manifest
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from rounding import needs_rounding

from exporter.verification.inputs import gather_inputs
from exporter.verification.verdicts import why_not_judged
from runtimes import Accuracy, Budget, compare
from runtimes.errors import PlanError
from runtimes.parity.budget_options import budget_from_text, changed_budget
from runtimes.specs import BatchRange


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("min_agrement=0.9", "unknown budget 'min_agrement'; did you mean min_agreement?"),
        ("min_agreement=1.5", "expected min_agreement from 0 to 1, got 1.5"),
        ("min_cosine=-1.1", "expected min_cosine from -1 to 1, got -1.1"),
        ("max_relative_error=-1", "expected max_relative_error of at least 0, got -1"),
        ("max_relative_error=nan", "expected max_relative_error of at least 0, got nan"),
        ("max_relative_error", "expected --budget as NAME=VALUE, got 'max_relative_error'"),
        ("max_relative_error=a", "expected a number for max_relative_error, got 'a'"),
        ("min_agreement=99%", "expected a number for min_agreement, got '99%'"),
        (" ", "expected --budget as NAME=VALUE, got nothing"),
    ],
)
def test_a_budget_that_is_none_is_refused_before_the_work(run: Any, bundle: Path, budget: str, said: str) -> None:
    shown = run("check", bundle, "--budget", budget)
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_a_limit_broken_by_less_than_is_shown_is_told_with_more_digits() -> None:
    reference = np.random.default_rng(0).standard_normal((8, 10))
    measured = compare(reference, reference * (1 + 1e-7 * np.arange(10)), Budget(0.0))
    (said,) = (limit.text for limit in Budget(0.0, min_cosine=1.0).limits(measured) if limit.name == "min_cosine")
    assert measured.worst_cosine is not None
    assert 0.999999 < measured.worst_cosine < 1
    assert said == f"worst cosine {measured.worst_cosine!r}, budget >= 1"


def test_why_accuracy_is_not_judged_goes_with_the_limit(good: Made) -> None:
    answer = good[0].backends[0].answer
    assert answer is not None
    assert why_not_judged("max_accuracy_drop", answer) == "max_accuracy_drop needs pictures with labels"
    said = why_not_judged("max_accuracy_drop", answer, "expected the model's 10 classes, got 2")
    assert said == "max_accuracy_drop needs pictures with labels: expected the model's 10 classes, got 2"


def test_several_limits_may_stand_in_one_text() -> None:
    assert budget_from_text(("min-agreement=0.9, min_cosine=0.5", "min_sqnr_db=3")) == {
        "min_agreement": 0.9,
        "min_cosine": 0.5,
        "min_sqnr_db": 3.0,
    }


def test_a_budgets_text_gives_the_budget_back() -> None:
    budget = Budget(0.05, min_agreement=0.98, min_cosine=0.99, min_sqnr_db=20.0, max_accuracy_drop=0.01, confidence=0.9)
    assert changed_budget(Budget(0.0), budget_from_text((budget.text(),))) == budget


def test_a_fall_of_accuracy_is_judged_by_the_figures_where_no_confidence_is_asked() -> None:
    budget, logits = Budget(0.05, max_accuracy_drop=0.01), np.eye(2)
    limits = budget.limits(compare(logits, logits, budget), Accuracy(10, 0.9, 0.8, (0.0, 1.0)))
    assert [(limit.name, limit.verdict) for limit in limits] == [("finite", "ok"), ("max_accuracy_drop", "broken")]
    assert limits[1].text == "fall of top-1 10.00%, budget <= 1%"


@pytest.mark.parametrize(
    ("given", "said"),
    [("confidence=95", "expected confidence from 0.5 to below 1"), ("confidence=1", "as 0.95, got 1; 0 judges")],
)
def test_a_confidence_that_is_none_is_refused(run: Any, bundle: Path, given: str, said: str) -> None:
    shown = run("check", bundle, "--budget", given)
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_pictures_that_are_too_few_to_decide_are_told_how_many_are_needed(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    """99.5 % takes 539 images without a flip: 199 z^2."""
    pictures = ("--backend", "onnxruntime", "--data", "built-in", "--budget", "confidence=0.95")
    junit, page = tmp_path / "junit.xml", tmp_path / "report.html"
    shown = run("check", bundle, *pictures, "--images", "40", "--junit", junit, "--html", page)
    assert shown.code == 4
    limit = "top-1 agreement 100.00% of 40 images, at least 93.66% (95% confidence), budget >= 99.5%: undecided"
    assert f"error: resnet20-fp16 is undecided on onnxruntime: {limit}, some 539 images would decide it; " in shown.err
    assert shown.err.strip().endswith("give 499 more pictures, with --images 539")
    assert "UNDECIDED" in shown.out
    assert "OUT OF BUDGET" not in shown.out
    assert limit in shown.out
    failure = cases(junit)["resnet20-fp16.onnxruntime.min_agreement"].find("failure")
    assert failure is not None
    assert (failure.get("type"), limit in (failure.get("message") or "")) == ("undecided", True)
    assert "resnet20-fp16 is undecided on onnxruntime" in page.read_text()
    (checked,) = run("check", bundle, *pictures, "--images", "40", "--json", "--quiet").json["bundles"]
    (one,) = checked["backends"]
    assert (checked["ok"], one["verdict"]) == (False, "undecided")
    found = {limit["name"]: (limit["verdict"], limit["images_needed"]) for limit in one["answer"]["limits"]}
    assert found["min_agreement"] == ("undecided", 539)
    assert found["max_relative_error"] == ("ok", None)
    shown = run("check", bundle, *pictures, "--images", "539")
    assert (shown.code, "agreement 100.00% of 539 images, at least 99.501% (95% confidence)" in shown.out) == (0, True)


def test_golden_inputs_need_not_decide_and_say_so(
    run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    shown = run(
        "check",
        bundle,
        "--backend",
        "onnxruntime",
        "--budget",
        "confidence=0.95",
        "--junit",
        tmp_path / "junit.xml",
        "--github",
    )
    assert shown.code == 0
    limit = "top-1 agreement 100.00% of 32 images, at least 92.20% (95% confidence), budget >= 99.5%: undecided"
    assert limit in shown.out
    assert "golden inputs need not decide that; to have it decided, give pictures with --data" in shown.out
    assert "::" not in shown.out
    skipped = cases(tmp_path / "junit.xml")["resnet20-fp16.onnxruntime.min_agreement"].find("skipped")
    assert skipped is not None
    assert limit in (skipped.get("message") or "")
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("### ✅")
    assert limit in summary


def test_github_tells_undecided_from_broken(
    run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    pictures = ("--backend", "onnxruntime", "--data", "built-in", "--images", "40", "--budget", "confidence=0.95")
    shown = run("check", bundle, *pictures, "--github")
    assert shown.code == 4
    (line,) = [line for line in shown.out.splitlines() if line.startswith("::error")]
    assert "::top-1 agreement 100.00%25 of 40 images" in line
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("### ❔")
    assert "| onnxruntime | undecided |" in summary


def test_random_weights_are_not_judged_by_agreement_and_it_is_said(run: Any, bundle: Path) -> None:
    def make_random(document: dict[str, Any]) -> None:
        document["model"]["weights"]["kind"] = "random"

    rewrite_manifest(bundle, make_random)
    options = ("check", bundle, "--backend", "onnxruntime")
    shown = run(*options)
    said = "random weights prove the arithmetic: agreement and accuracy are reported, not judged"
    assert (shown.code, said in shown.out) == (0, True)
    names = [
        limit["name"]
        for limit in run(*options, "--json", "--quiet").json["bundles"][0]["backends"][0]["answer"]["limits"]
    ]
    assert names == ["finite", "max_relative_error", "max_batch_difference"]
    shown = run(*options, "--budget", "min_agreement=0.5")  # asked for
    assert (shown.code, said in shown.out) == (0, False)


def test_a_limit_that_was_asked_for_is_judged_or_refused(
    run: Any, bundle: Path, tmp_path: Path, shipped_bundle: Any
) -> None:
    shown = run("check", bundle, "--budget", "max_accuracy_drop=0")
    assert (shown.code, "max_accuracy_drop needs pictures whose classes are the model's" in shown.err) == (2, True)
    options = ("--backend", "onnxruntime", "--data", "built-in", "--images", "40", "--junit", tmp_path / "junit.xml")
    assert run("check", bundle, *options, "--budget", "max_accuracy_drop=0").code == 0
    assert "resnet20-fp16.onnxruntime.max_accuracy_drop" in cases(tmp_path / "junit.xml")
    shown = run("check", shipped_bundle("fp32", "stages").folder, "--budget", "min_agreement=1")
    assert (shown.code, "min_agreement is about classes" in shown.err) == (2, True)


@pytest.mark.parametrize(
    ("limit", "shape", "batch", "said"),
    [
        ("min_cosine", (1,), BatchRange(1, 4, 8), "gives a single one"),
        ("max_batch_difference", (10,), BatchRange(8, 8, 8), "about several batch sizes"),
    ],
)
def test_a_limit_that_the_model_cannot_have_is_refused(
    good: Made, limit: str, shape: tuple[int, ...], batch: BatchRange, said: str
) -> None:
    made = good[1].bundle
    output = replace(made.manifest.outputs[0], shape=("batch", *shape))
    plan = replace(
        good[1],
        bundle=replace(made, manifest=replace(made.manifest, outputs=(output,), batch=batch)),
        budget={limit: 0.5},
    )
    with pytest.raises(PlanError, match=said):
        gather_inputs(plan)


@needs_rounding
def test_a_limit_that_does_not_apply_is_a_skipped_case(run: Any, tmp_path: Path, shipped_bundle: Any) -> None:
    assert (
        run("check", shipped_bundle("int8").folder, "--backend", "onnxruntime", "--junit", tmp_path / "junit.xml").code
        == 0
    )
    skipped = cases(tmp_path / "junit.xml")["resnet20-int8.onnxruntime.max_accuracy_drop"].find("skipped")
    assert skipped is not None
    assert "max_accuracy_drop needs pictures with labels" in (skipped.get("message") or "")
