"""Limits that are decided by evidence: ok, broken or undecided, and how many images would decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtimes.errors import PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.budget_options import changed_budget
from runtimes.parity.compare import OtherBatch, compare
from runtimes.parity.evidence import Answers, BackendParity, Terms, judge
from runtimes.parity.intervals import (
    images_to_decide_fall,
    images_to_decide_share,
    look_sizes,
    one_sided_z,
    tango_interval,
    wilson_interval,
)
from runtimes.parity.limits import Confidence, Limit, limit_of_agreement, limit_of_fall
from runtimes.parity.measures import Accuracy

SURE = Confidence(0.95)
FOUR_LOOKS = Confidence(0.95, looks=4)
BUDGET = Budget(0.05, min_agreement=0.98, max_accuracy_drop=0.01, confidence=0.95)


# --- one limit ---


@pytest.mark.parametrize(("sure", "enough"), [(SURE, 133), (FOUR_LOOKS, 247)])
def test_agreement_without_a_flip_is_decided_by_as_many_images_as_wilsons_limit_takes(
    sure: Confidence, enough: int
) -> None:
    """Where all agree, the lower limit is n / (n + z^2): 98 % of it takes 49 z^2 images."""
    assert (enough - 1) / (enough - 1 + sure.z**2) < 0.98 <= enough / (enough + sure.z**2)
    few = limit_of_agreement(enough - 1, enough - 1, 0.98, sure)
    assert (few.verdict, few.ok, few.images_needed) == ("undecided", False, enough)
    decided = limit_of_agreement(enough, enough, 0.98, sure)
    assert (decided.verdict, decided.ok, decided.images_needed) == ("ok", True, None)


@pytest.mark.parametrize(("sure", "enough"), [(SURE, 268), (FOUR_LOOKS, 498)])
def test_a_fall_without_a_discordant_pair_is_decided_by_as_many_images_as_tangos_limit_takes(
    sure: Confidence, enough: int
) -> None:
    """Where both have the same images right, the upper limit is z^2 / (n + z^2): a point of it takes 99 z^2 images."""
    assert sure.z**2 / (enough + sure.z**2) <= 0.01 < sure.z**2 / (enough - 1 + sure.z**2)
    few = limit_of_fall(0, 0, enough - 1, 0.01, sure)
    assert (few.verdict, few.images_needed) == ("undecided", enough)
    assert limit_of_fall(0, 0, enough, 0.01, sure).verdict == "ok"


def test_agreement_is_broken_where_its_upper_limit_is_below_the_budget() -> None:
    """15 of 20 agree: z is 1.645, the lower limit 0.568 and the upper 0.873."""
    assert wilson_interval(15, 20, one_sided_z(0.95)) == pytest.approx((0.5678, 0.8726), abs=5e-4)
    found = [limit_of_agreement(15, 20, bound, SURE).verdict for bound in (0.56, 0.57, 0.87, 0.88)]
    assert found == ["ok", "undecided", "undecided", "broken"]


def test_a_fall_is_broken_where_its_lower_limit_is_above_the_budget() -> None:
    """12 lost and 2 gained of 50 are a fall of 0.2; with z = 1.645 the quartic of Yang, Sun and Hardin has the roots
    0.0855 and 0.3204."""
    low, high = tango_interval(12, 2, 50, SURE.z)
    assert (low, high) == pytest.approx((0.0855, 0.3204), abs=5e-5)
    found = [limit_of_fall(12, 2, 50, bound, SURE).verdict for bound in (0.05, low, 0.2, high, 0.35)]
    assert found == ["broken", "undecided", "undecided", "ok", "ok"]


@pytest.mark.parametrize(("agreeing", "images"), [(132, 132), (99, 100), (193, 200), (196, 200), (490, 500), (39, 40)])
@pytest.mark.parametrize("sure", [SURE, FOUR_LOOKS])
def test_so_many_images_decide_an_agreement_that_stays_what_it_is_and_one_fewer_does_not(
    agreeing: int, images: int, sure: Confidence
) -> None:
    needed = images_to_decide_share(agreeing, images, 0.98, sure.z)
    if agreeing / images == 0.98:
        assert needed is None
        return
    assert needed is not None
    decided = []
    for count in (needed - 1, needed):
        low, high = wilson_interval(agreeing / images * count, count, sure.z)  # type: ignore[arg-type]  # the share as it is
        decided.append(low >= 0.98 or high < 0.98)
    assert decided[1]
    assert needed == images + 1 or not decided[0]


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(0, 0, 100), (2, 0, 300), (3, 5, 200), (9, 1, 400), (4, 0, 400)]
)
def test_so_many_images_decide_a_fall_that_stays_what_it_is_and_one_fewer_does_not(
    lost: int, gained: int, images: int
) -> None:
    needed = images_to_decide_fall(lost, gained, images, 0.01, SURE.z)
    if (lost - gained) / images == 0.01:
        assert needed is None
        return
    assert needed is not None
    decided = []
    for count in (needed - 1, needed):
        pairs: tuple[Any, Any] = (lost / images * count, gained / images * count)
        low, high = tango_interval(*pairs, count, SURE.z)
        decided.append(high <= 0.01 or low > 0.01)
    assert decided == [False, True]


def test_no_number_of_images_shows_that_all_agree() -> None:
    found = limit_of_agreement(2000, 2000, 1.0, SURE)
    assert (found.verdict, found.images_needed) == ("undecided", None)
    assert found.text.endswith("budget >= 100%: undecided, no number of images like these would decide it")
    assert limit_of_agreement(1999, 2000, 1.0, SURE).verdict == "broken"
    assert limit_of_fall(0, 0, 2000, 0.0, SURE).verdict == "undecided"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            limit_of_agreement(399, 400, 0.98, SURE),
            "top-1 agreement 99.75% of 400 images, at least 98.89% (95% confidence), budget >= 98%",
        ),
        (
            limit_of_agreement(360, 400, 0.98, SURE),
            "top-1 agreement 90.00% of 400 images, at most 92.20% (95% confidence), budget >= 98%",
        ),
        (
            limit_of_agreement(1, 1, 0.98, Confidence(0.99)),
            "top-1 agreement 100.00% of 1 image, at least 15.60% (99% confidence), budget >= 98%: undecided, some 266 "
            "images would decide it",
        ),
        (
            limit_of_fall(3, 1, 400, 0.01, SURE),
            "fall of top-1 0.50% (3 lost and 1 gained of 400 images), at most 1.64% (95% confidence), budget <= 1%: "
            "undecided, some 1466 images would decide it",
        ),
        (
            limit_of_fall(0, 2, 20_000, 0.01, SURE),
            "fall of top-1 -0.01% (0 lost and 2 gained of 20,000 images), at most 0.00% (95% confidence), budget <= 1%",
        ),
        (
            limit_of_agreement(132, 132, 0.97991, SURE),
            "top-1 agreement 100.00% of 132 images, at least 97.992% (95% confidence), budget >= 97.991%",
        ),
    ],
)
def test_a_limit_shows_its_evidence(limit: Limit, said: str) -> None:
    assert limit.text == said
    assert said.startswith(f"{limit.what} {limit.measured}, budget {limit.allowed}")


# --- looks, and what a budget takes ---


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (2000, (250, 500, 1000, 2000)),
        (1999, (499, 999, 1999)),
        (300, (300,)),
        (500, (250, 500)),
        (8, (8,)),
        (16_000, (2000, 4000, 8000, 16_000)),
    ],
)
def test_looks_double_and_end_with_all_images(most: int, sizes: tuple[int, ...]) -> None:
    assert look_sizes(most) == sizes


def test_the_first_look_decides_where_every_image_agrees() -> None:
    assert limit_of_agreement(250, 250, 0.98, FOUR_LOOKS).ok


@pytest.mark.parametrize(("value", "taken"), [(0.99, 0.99), (0.5, 0.5), (0, None)])
def test_the_confidence_of_a_budget_can_be_set(value: float, taken: float | None) -> None:
    assert changed_budget(BUDGET, {"confidence": value}) == dataclasses.replace(BUDGET, confidence=taken)


@pytest.mark.parametrize("value", [1, 0.49, 95, -0.5, float("nan"), float("inf")])
def test_a_confidence_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(PlanError, match=r"expected confidence from 0\.5 to below 1, as 0\.95, got .*; 0 judges"):
        changed_budget(BUDGET, {"confidence": value})


def test_own_error_and_confidence_are_no_limits_but_say_how_the_limits_are_meant() -> None:
    assert BUDGET.limit_names == ("finite", "min_agreement", "max_accuracy_drop")
    assert BUDGET.text() == "own_error=0.05 min_agreement=0.98 max_accuracy_drop=0.01 confidence=0.95"
    assert changed_budget(BUDGET, {"own_error": 0.1}).own_error == 0.1


def test_random_weights_are_not_held_to_agreement_and_accuracy() -> None:
    free = dataclasses.replace(BUDGET, min_sqnr_db=10.0).errors_alone()
    assert free.limit_names == ("finite", "min_sqnr_db")
    assert BUDGET.takes_confidence
    assert not free.takes_confidence
    assert not dataclasses.replace(BUDGET, confidence=None).takes_confidence


def test_a_budget_with_a_confidence_judges_only_what_was_counted() -> None:
    measured = compare(np.eye(4), np.eye(4), BUDGET)
    with pytest.raises(ValueError, match="counted its images"):
        BUDGET.limits(dataclasses.replace(measured, images=None))
    with pytest.raises(ValueError, match="lost and gained"):
        BUDGET.limits(measured, Accuracy(4, 1.0, 1.0, (0.5, 1.0)))


# --- outputs, without a runtime ---


def logits(images: int) -> NDArray[np.float32]:
    """The first of four classes leads by far."""
    return np.tile(np.array([10.0, 0.0, 0.0, 0.0], np.float32), (images, 1))


def flipped(images: int, places: int) -> NDArray[np.float32]:
    found = logits(images)
    found[:places] = found[:places, ::-1]
    return found


def judged(outputs: NDArray[np.float32], terms: Terms, labels: NDArray[np.int64] | None = None) -> BackendParity:
    answers = Answers({"logits": outputs}, (1, 32), [OtherBatch(np.arange(1), {"logits": outputs[:1]})])
    return judge({"logits": logits(len(outputs))}, "device", answers, terms, labels)


def test_an_image_is_counted_once_whatever_the_batch_sizes() -> None:
    found = judged(flipped(400, 4), Terms(BUDGET))
    (agreement,) = (limit for limit in found.limits if limit.name == "min_agreement")
    assert agreement == limit_of_agreement(396, 400, 0.98, SURE)
    assert (found.report.images, found.report.batches) == (400, (1, 32))


@pytest.mark.parametrize(("images", "wrong", "verdict"), [(200, 0, "ok"), (40, 0, "undecided"), (40, 20, "broken")])
@pytest.mark.parametrize("must_decide", [False, True])
def test_what_is_undecided_fails_where_it_must_be_decided(
    images: int,
    wrong: int,
    verdict: str,
    must_decide: bool,  # a parameter of the test
) -> None:
    found = judged(flipped(images, wrong), Terms(BUDGET, must_decide=must_decide))
    fails = verdict == "broken" or (verdict == "undecided" and must_decide)
    compared = found.report.backends["device"]
    assert (found.verdict, found.ok, bool(found.report), compared.ok) == (verdict, *[not fails] * 3)
    assert [limit.name for limit in found.failing] == (["min_agreement"] if fails else [])
    (agreement,) = (limit for limit in found.limits if limit.name == "min_agreement")
    said = {"ok": compared.kept, "undecided": compared.undecided, "broken": compared.violations}
    assert said.pop(verdict) == (agreement.text,)
    assert set(said.values()) == {()}
    assert found.images_needed == (133 if verdict == "undecided" else None)


def test_images_needed_are_those_of_the_limit_that_needs_most_and_unknown_where_one_needs_any_number() -> None:
    labels = np.zeros(40, np.int64)
    found = judged(logits(40), Terms(BUDGET, must_decide=True), labels)
    assert [limit.images_needed for limit in found.failing] == [133, 268]
    assert found.images_needed == 268
    assert found.accuracy is not None
    assert (found.accuracy.lost, found.accuracy.gained) == (0, 0)
    assert judged(logits(40), Terms(dataclasses.replace(BUDGET, min_agreement=1.0)), labels).images_needed is None


def test_accuracy_is_part_of_what_the_comparison_says_of_itself() -> None:
    labels = np.zeros(400, np.int64)
    found = judged(flipped(400, 100), Terms(dataclasses.replace(BUDGET, min_agreement=None)), labels)
    compared = found.report.backends["device"]
    assert not compared.ok
    assert compared.violations[0].startswith("fall of top-1 25.00% (100 lost and 0 gained of 400 images), at least ")


def test_several_looks_take_more_images() -> None:
    once: Callable[[int], str] = lambda looks: judged(logits(200), Terms(BUDGET, looks=looks)).verdict  # noqa: E731
    assert [once(looks) for looks in (1, 2, 4)] == ["ok", "ok", "undecided"]
