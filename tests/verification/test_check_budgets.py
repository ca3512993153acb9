"""`resnet-deploy check --budget`: which limits there are, which of them are judged, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Made
from junit import cases
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from rounding import needs_rounding

from exporter.verification.inputs import gather_inputs
from runtimes import Accuracy, Budget, compare
from runtimes.errors import PlanError
from runtimes.parity.budget_options import budget_from_text, changed_budget
from runtimes.specs import BatchRange


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("min_agrement=0.9", "unknown budget 'min_agrement'; did you mean min_agreement?"),
        ("min_agreement=1.5", "expected min_agreement from 0 to 1, got 1.5"),
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
    assert said == f"worst cosine {measured.worst_cosine!r}, budget >= 1.0"


def test_several_limits_may_stand_in_one_text() -> None:
    assert budget_from_text(("min-agreement=0.9, min_cosine=0.5", "min_sqnr_db=3")) == {
        "min_agreement": 0.9,
        "min_cosine": 0.5,
        "min_sqnr_db": 3.0,
    }


def test_a_budgets_text_gives_the_budget_back() -> None:
    budget = Budget(0.05, min_agreement=0.98, min_cosine=0.99, min_sqnr_db=20.0, max_accuracy_drop=0.01)
    assert changed_budget(Budget(0.0), budget_from_text((budget.text(),))) == budget


def test_an_accuracy_that_fewer_images_could_not_show_is_not_judged() -> None:
    budget = Budget(0.05, max_accuracy_drop=0.01)
    logits = np.eye(2)
    measured = compare(logits, logits, budget)
    worse = {images: budget.limits(measured, Accuracy(images, 0.9, 0.8, (0.0, 1.0))) for images in (99, 100)}
    assert [limit.name for limit in worse[99]] == ["finite"]
    assert [(limit.name, limit.ok) for limit in worse[100]] == [("finite", True), ("max_accuracy_drop", False)]
    assert worse[100][1].text == "fall of top-1 10.00%, budget <= 1.00%"


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
    assert "needs pictures with labels" in (skipped.get("message") or "")
