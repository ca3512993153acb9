"""What `--max-drop` and `--min-agreement` refuse: one line each, before any work, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_blocks import fashion_fixture, write_pictures  # noqa: F401  # pytest finds the fixture by its name
from commands import Ran, run_main

from exporter.cli import export as export_cli
from exporter.lowering.lower import LoweredGraph
from exporter.lowering.precisions import int8
from exporter.models.loading import load_model
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.return_blocks import return_blocks
from exporter.pipeline.terms import budget_for, fewest_to_decide
from runtimes.block_precision import BlockDamage, Sensitivity
from runtimes.errors import PlanError
from runtimes.parity.budget import CLASS_LIMITS, Budget
from runtimes.parity.intervals import look_sizes
from runtimes.parity.limits import Confidence, limit_of_agreement, limit_of_fall
from runtimes.progress import Steps

Run = Callable[..., Ran]


@pytest.fixture(name="run")
def run_fixture(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *options: run_main(export_cli.main, ["resnet20", "--output", "out", *options], capsys, monkeypatch)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--int8", "--max-drop", "0"), "expected --max-drop above 0 and at most 100 points, got 0"),
        (("--int8", "--max-drop", "-1"), "expected --max-drop above 0 and at most 100 points, got -1"),
        (("--int8", "--max-drop", "nan"), "expected --max-drop above 0 and at most 100 points, got nan"),
        (("--int8", "--max-drop", "100.5"), "expected --max-drop above 0 and at most 100 points, got 100.5"),
        (("--int8", "--min-agreement", "0"), "expected --min-agreement above 0 and below 100 percent, got 0"),
        (("--int8", "--min-agreement", "nan"), "expected --min-agreement above 0 and below 100 percent, got nan"),
        (("--int8", "--min-agreement", "101"), "expected --min-agreement above 0 and below 100 percent, got 101"),
        (("--int8", "--min-agreement", "100"), "got 100; no number of images shows that all agree; for example 99"),
        (("--fp16", "--max-drop", "1"), "--max-drop returns blocks from INT8 to float, and fp16 has none; add --int8"),
        (("--min-agreement", "99"), "--min-agreement returns blocks from INT8 to float, and fp32 has none; add --int8"),
        (("--int8", "--max-drop", "1", "--min-agreement", "99"), "expected --max-drop or --min-agreement, got both"),
        (("--int8", "--max-drop", "1"), "--max-drop needs --data"),
        (("--int8", "--min-agreement", "99"), "--min-agreement needs --data"),
        (("--int8", "--max-drop", "1", "--features", "pool", "--data", "built-in"), "--features gives none"),
        (
            ("--int8", "--max-drop", "1", "--weights", "random", "--data", "built-in"),
            "random weights have learned none",
        ),
        (
            ("--int8", "--max-drop", "1", "--budget", "max_accuracy_drop=0.02", "--data", "built-in"),
            "--max-drop sets the limit max_accuracy_drop, and so does --budget; give one of them",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_work(run: Run, options: tuple[str, ...], says: str) -> None:
    shown = run(*options)
    assert shown.code == 2
    assert says in shown.error
    assert not Path("out").exists()


def test_pictures_without_classes_are_refused_with_what_needs_none(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.load(write_pictures(tmp_path / "all.npz"))["images"])
    shown = run("--int8", "--max-drop", "1", "--data", "plain.npz")
    assert shown.code == 2
    assert "got pictures without classes; give such --data, or --min-agreement, which needs no classes" in shown.error


def test_classes_that_are_not_the_models_are_said_and_never_left_unjudged(run: Run, fashion: Path) -> None:
    """Eleven classes, of which the last is none of the model's ten."""
    with np.load(fashion) as archive:
        images, labels = archive["images"], archive["labels"].copy()
    labels[-1] = 10
    np.savez("other.npz", images=images, labels=labels)
    shown = run("--int8", "--max-drop", "1", "--data", "other.npz")
    assert shown.code == 2
    assert "--max-drop counts right answers, and needs pictures whose classes are the model's: " in shown.error
    assert "10" in shown.error
    assert "--min-agreement" in shown.error


def test_too_few_images_are_refused_with_how_many_are_needed(run: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "few.npz", 900)
    shown = run("--int8", "--max-drop", "0.5", "--data", "few.npz")
    assert shown.code == 2
    needed = fewest_to_decide(Budget(own_error=0.05, max_accuracy_drop=0.005, confidence=0.95), labelled=True)
    assert f"expected {needed} to choose blocks with and {needed} to prove the choice with" in shown.error
    assert "got 388; so many it takes to show a fall of top-1 of at most 0.5 points" in shown.error
    assert "give more --data, or a larger --max-drop" in shown.error


def test_too_few_proof_images_are_refused_with_how_many_are_needed(run: Run, fashion: Path) -> None:
    shown = run("--int8", "--max-drop", "1", "--data", str(fashion), "--proof-images", "100")
    assert shown.code == 2
    assert "expected --proof-images of at least" in shown.error
    assert "got 100" in shown.error


@pytest.mark.parametrize("fall", [0.001, 0.0034, 0.01, 0.05])
def test_the_fewest_images_are_just_enough_where_no_image_changes_its_class(fall: float) -> None:
    def sure(images: int) -> Confidence:
        return Confidence(0.95, len(look_sizes(images)))

    needed = fewest_to_decide(Budget(own_error=0.05, max_accuracy_drop=fall, confidence=0.95), labelled=True)
    assert limit_of_fall(0, 0, needed, fall, sure(needed)).ok
    assert not limit_of_fall(0, 0, needed - 1, fall, sure(needed - 1)).ok
    same = fewest_to_decide(Budget(own_error=0.05, min_agreement=1 - fall, confidence=0.95), labelled=False)
    assert limit_of_agreement(same, same, 1 - fall, sure(same)).ok
    assert not limit_of_agreement(same - 1, same - 1, 1 - fall, sure(same - 1)).ok


def test_a_plan_holds_the_proof_to_what_was_asked_for(tmp_path: Path) -> None:
    plan = ExportPlan("resnet20", tmp_path / "out", precision="int8", data="built-in", max_drop=0.5)
    assert plan.limits == {"max_accuracy_drop": 0.005}
    plan = ExportPlan("resnet20", tmp_path / "out", precision="int8", data="built-in", min_agreement=99)
    assert plan.limits == {"min_agreement": 0.99}


@pytest.mark.parametrize(("target", "kept"), [("max_drop", "max_accuracy_drop"), ("min_agreement", "min_agreement")])
def test_a_target_stands_in_place_of_both_limits_on_classes(tmp_path: Path, target: str, kept: str) -> None:
    """Who allows 5 points of accuracy is not held to an agreement of 98 %, but to one that is asked for."""
    other = next(name for name in CLASS_LIMITS if name != kept)
    options: dict[str, Any] = {target: 5 if target == "max_drop" else 95}
    plan = ExportPlan("resnet20", tmp_path / "out", precision="int8", data="built-in", **options)
    loaded = load_model(plan.model_request)
    held = budget_for(plan, loaded, int8.BUDGET)
    assert getattr(held, kept) == pytest.approx(0.05 if target == "max_drop" else 0.95)
    assert getattr(held, other) is None
    assert held.min_sqnr_db == int8.BUDGET.min_sqnr_db
    assert getattr(budget_for(replace(plan, budget={other: 0.5}), loaded, int8.BUDGET), other) == 0.5


def test_a_target_means_nothing_where_no_block_is_in_int8(tmp_path: Path) -> None:
    plan = ExportPlan("resnet20", tmp_path / "out", precision="int8", data="built-in", max_drop=1)
    nothing: Any = None
    lowered = LoweredGraph(nothing, nothing, None, int8.BUDGET, Sensitivity(16, (BlockDamage("stem", 0.0, 0),)))
    with pytest.raises(PlanError, match="--max-drop returns blocks from INT8 to float, and none is in INT8 here"):
        return_blocks(plan, nothing, lowered, nothing, Steps())
