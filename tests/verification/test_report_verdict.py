"""`report.html`: its verdict, in sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import Made
from reports import features_fixture, judged_again, page_of, section, text_of  # noqa: F401  # pytest finds it by its name

from exporter.verification.report.sentences import overall_text, share_text, status_of, verdict_sentences
from exporter.verification.verdicts import BackendCheck, BundleCheck


def test_a_good_check_is_one_sentence_that_says_all(good: Made) -> None:
    (sentence,) = verdict_sentences(good[0])
    assert sentence.startswith(
        "tiny-fp32 says what FP32 PyTorch says on onnxruntime: of 16 images none changed class, the largest logit error is "
    )
    assert sentence.endswith("of the largest logit, and every limit is kept.")
    assert status_of(good[0]) == "within budget"


def test_broken_limits_are_named_with_what_is_asked_and_what_it_meant_for_the_classes(turned: Made) -> None:
    (sentence,) = verdict_sentences(turned[0])
    limit = next(limit for limit in turned[0].backends[0].answer.limits if limit.name == "min_agreement")  # type: ignore[union-attr]  # it answered
    assert sentence.startswith("tiny-turned is out of budget on onnxruntime: ")
    assert f"top-1 agreement is {limit.measured} where at least 99.5% is asked" in sentence
    assert sentence.endswith("16 of 16 images changed class, 16 of which count.")
    assert status_of(turned[0]) == "out of budget"


def test_what_must_be_decided_and_is_not_is_a_verdict_of_its_own(good: Made) -> None:
    made = judged_again(good, must_decide=True)
    (sentence,) = verdict_sentences(made[0])
    assert sentence == (
        "tiny-fp32 is undecided on onnxruntime: 16 images are too few to decide on the top-1 agreement, which some 133 "
        "would; of 16 images none changed class."
    )
    assert status_of(made[0]) == "undecided"
    assert overall_text([made[0], good[0]]) == "Of 2 bundles 1 is undecided and 1 is within budget."
    page = page_of(section(made))
    assert '<p class="badge open"><span aria-hidden="true">?</span> undecided</p>' in page
    said = text_of(page)
    assert "(95% confidence); some 133 images would decide it ? undecided" in said
    assert "broken" not in said


def test_what_need_not_be_decided_is_said_of_a_bundle_within_its_budget(good: Made) -> None:
    made = judged_again(good, must_decide=False)
    kept, rest = verdict_sentences(made[0])
    assert kept.endswith("of the largest logit, and no limit is broken.")
    assert rest == (
        "On onnxruntime 16 images are too few to decide on the top-1 agreement, which some 133 would, but such a check "
        "need not."
    )
    assert status_of(made[0]) == "within budget"
    said = text_of(page_of(section(made)))
    assert "✓ within budget" in said
    assert "some 133 images would decide it ? undecided" in said


def test_a_broken_limit_goes_before_an_undecided_one(good: Made, turned: Made) -> None:
    both = replace(
        good[0],
        backends=(*judged_again(good, must_decide=True)[0].backends, replace(turned[0].backends[0], backend="b")),
    )
    assert status_of(both) == "out of budget"
    assert "is out of budget: " in str(both.problem)


def test_a_limit_s_parts_are_its_text(turned: Made) -> None:
    (one,) = turned[0].backends
    assert one.answer is not None
    assert [limit.text for limit in one.answer.limits[1:]] == [
        f"{one.what} {one.measured}, budget {one.allowed}" for one in one.answer.limits[1:]
    ]


def test_features_have_outputs_in_place_of_classes(features: BundleCheck) -> None:
    assert verdict_sentences(features) == (
        "tiny says what FP32 PyTorch says on onnxruntime: the largest error is 0.4% of its output's largest value, and every limit is kept.",
    )


@pytest.mark.parametrize(
    ("verdict", "asked", "status", "said"),
    [
        ("not here", True, "not answered", "tensorrt was not here to answer, though asked for by name."),
        ("not here", False, "within budget", "tensorrt was not here to answer."),
        ("failed", False, "failed", "On tensorrt it failed: no luck."),
        ("crashed", False, "failed", "On tensorrt it crashed: no luck."),
    ],
)
def test_a_backend_that_gave_no_answer_is_told(good: Made, verdict: Any, asked: bool, status: str, said: str) -> None:
    other = replace(
        good[0], backends=(*good[0].backends, BackendCheck("tensorrt", verdict, "no luck", None, 0.0)), asked=asked
    )
    assert status_of(other) == status
    assert said in verdict_sentences(other)
    assert "no luck" in text_of(page_of(replace(section(good), check=other)))


def test_where_nobody_answered_there_is_no_table(good: Made) -> None:
    nobody = replace(good[0], backends=(BackendCheck("tensorrt", "not here", "no GPU", None, 0.0),))
    said = text_of(page_of(replace(section(good), check=nobody)))
    assert "No backend answered: tensorrt ○ not here no GPU" in said
    assert "What was measured" not in said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0257, "2.6%"), (4.08e-8, "4.1e-08"), (0.0, "0%"), (1.0, "100%"), (12.5, "1250%"), (1e-4, "0.01%")],
)
def test_shares_are_for_people(value: float, text: str) -> None:
    assert share_text(value) == text


def test_several_bundles_have_one_verdict_and_a_table_of_contents(good: Made, turned: Made) -> None:
    assert overall_text([good[0], turned[0]]) == "Of 2 bundles 1 is within budget and 1 is out of budget."
    assert overall_text([good[0], good[0]]) == "All 2 bundles are within budget."
    page = page_of(section(good), section(turned))
    assert "Parity of 2 bundles" in page
    assert [link in page for link in ('href="#b1"', 'id="b1"', 'href="#b2"', 'id="b2"')] == [True] * 4


@pytest.mark.parametrize(("board", "first"), [(None, "onnxruntime"), ("a Jetson", "tensorrt")])
def test_where_nothing_is_here_a_jetson_is_told_how_it_gets_tensorrt(
    good: Any, monkeypatch: pytest.MonkeyPatch, board: str | None, first: str
) -> None:
    monkeypatch.setattr("exporter.verification.verdicts.this_board", lambda: board)
    missing = [BackendCheck(name, "not here", f"no {name}", None, 0.0) for name in ("onnxruntime", "tensorrt")]
    nobody = replace(good[0], backends=tuple(missing), asked=False)
    assert str(nobody.problem).endswith(f": {first} cannot answer: no {first}")
