"""Are these outputs the reference's? What is measured, against figures worked out by hand and from the literature."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.lowering.precisions.int8 import BUDGET
from runtimes.errors import ParityError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import ParityReport, compare, compare_features, compare_outputs
from runtimes.parity.flips import Flips, flips_between
from runtimes.parity.intervals import wilson_interval
from runtimes.parity.measures import LARGEST_ERROR, LARGEST_SQNR_DB, Accuracy, Comparison, accuracy

FREE = Budget(own_error=0.0)
REFERENCE = np.array([[10.0, 0.0], [0.0, 5.0]])


def logits(images: int = 40, classes: int = 10) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 5, (images, classes)).astype(np.float32)


def test_equal_outputs_are_equal_in_every_measure() -> None:
    budget = Budget(0.0, max_relative_error=0.0, min_agreement=1.0, min_cosine=1.0 - 1e-12, min_sqnr_db=LARGEST_SQNR_DB)
    found = compare(logits(), logits(), budget)
    assert found.ok
    assert found.finite
    assert (found.max_relative_error, found.mean_relative_error, found.p99_relative_error) == (0.0, 0.0, 0.0)
    assert found.worst_cosine == pytest.approx(1.0, abs=1e-12)
    assert (found.sqnr_db, found.top1_agreement, found.top5_overlap) == (LARGEST_SQNR_DB, 1.0, 1.0)
    assert found.flips == Flips(0, 0)
    assert found.violations == ()


def test_a_known_error_gives_the_figures_worked_out_by_hand() -> None:
    found = compare(REFERENCE, np.array([[10.0, 0.1], [0.0, 5.0]]), FREE)
    assert found.max_relative_error == pytest.approx(0.1 / 10)
    assert found.mean_relative_error == pytest.approx(0.1 / 10 / 4)
    assert found.p99_relative_error == pytest.approx(
        0.97 * 0.01
    )  # three zeros and 0.01, interpolated at 0.99 x 3 = 2.97
    # without their means: 5 and -5 become 4.95 and -4.95
    assert found.worst_cosine == pytest.approx(1.0)
    assert found.sqnr_db == pytest.approx(10 * math.log10((2 * 5**2 + 2 * 2.5**2) / (2 * 0.05**2)))
    assert (found.top1_agreement, found.flips) == (1.0, Flips(0, 0))


def test_the_error_is_relative_to_the_largest_logit_of_either_sign() -> None:
    reference = np.array([[1.0, -20.0], [0.5, 3.0]])
    assert compare(reference, reference + 0.2, FREE).max_relative_error == pytest.approx(0.01)


def test_the_99th_percentile_leaves_out_one_error_in_a_hundred() -> None:
    reference = np.zeros((1, 1001))
    reference[0, 0] = 1.0
    outputs = reference.copy()
    outputs[0, 1:6] = 0.5
    found = compare(reference, outputs, FREE)
    assert (found.max_relative_error, found.p99_relative_error) == (0.5, 0.0)


def test_scaling_both_changes_no_measure() -> None:
    noisy = logits() + np.random.default_rng(1).normal(0, 0.5, logits().shape).astype(np.float32)
    budget = Budget(own_error=0.02)
    one, other = compare(logits(), noisy, budget), compare(logits() * 1024, noisy * 1024, budget)
    assert one.flips is not None
    assert one.flips.total > one.flips.counted > 0
    assert one == other  # to the bit: 1024 is a power of two


def test_the_worst_cosine_is_that_of_the_worst_image() -> None:
    reference = np.array([[3.0, -3.0, 0.0], [1.0, 1.0, -2.0]])
    found = compare(reference, np.array([[3.0, -3.0, 0.0], [1.0, -1.0, 0.0]]), FREE)
    assert found.worst_cosine == pytest.approx(0.0)  # at right angles
    found = compare(reference, np.array([[3.0, 0.0, -3.0], [1.0, 1.0, -2.0]]), FREE)
    assert found.worst_cosine == pytest.approx(9 / 18)
    assert compare(reference, -reference, FREE).worst_cosine == pytest.approx(-1.0)


def test_a_value_added_to_all_logits_of_an_image_changes_neither_cosine_nor_sqnr() -> None:
    """Softmax ignores it."""
    shifts = np.linspace(-40, 40, 40)[:, None]
    noisy = logits().astype(np.float64) + np.random.default_rng(1).normal(0, 0.5, logits().shape)
    plain = compare(logits(), noisy, FREE)
    for moved in (compare(logits(), noisy + shifts, FREE), compare(logits() + shifts, noisy + shifts, FREE)):
        assert moved.worst_cosine == pytest.approx(plain.worst_cosine, rel=1e-9)
        assert moved.sqnr_db == pytest.approx(plain.sqnr_db, rel=1e-9)
    at_other_batches = compare(logits(), logits(), FREE, [(np.arange(40), noisy + shifts)])
    assert at_other_batches.worst_cosine == pytest.approx(plain.worst_cosine, rel=1e-9)
    one = np.array([[3.0], [-4.0]])
    assert compare(one, one + 1, FREE).sqnr_db == pytest.approx(10 * math.log10(25 / 2))  # a single logit is as it is


def test_two_classes_as_good_as_undecided_have_an_opposite_cosine_and_are_no_fault_of_int8() -> None:
    """One image of which the network says nothing: its cosine says nothing either, and is no limit of INT8's."""
    reference = np.random.default_rng(0).normal(0, 4, (300, 1)) * np.array([[1.0, -1.0]])
    reference[7] = (0.01, -0.012)
    outputs = reference * 1.02
    outputs[7] = (-0.02, 0.01)
    found = compare(reference, outputs, BUDGET)
    assert found.worst_cosine == pytest.approx(-1.0)
    assert found.flips == Flips(1, 0)
    assert (found.ok, found.violations, found.undecided) == (True, (), ())


def test_rows_of_zeros_have_the_cosine_of_equals_with_each_other_and_of_strangers_with_all_else() -> None:
    zeros = np.zeros((1, 3))
    assert compare(zeros, zeros, FREE).worst_cosine == 1.0
    assert compare(zeros, np.array([[1.0, -1.0, 0.0]]), FREE).worst_cosine == 0.0
    assert compare(np.array([[1.0, -1.0, 0.0]]), zeros, FREE).worst_cosine == 0.0


def test_half_precision_outputs_are_measured_in_double() -> None:
    outputs = logits().astype(np.float16)
    expected = np.abs(outputs.astype(np.float64) - logits()).max() / np.abs(logits()).max()
    assert compare(logits(), outputs, FREE).max_relative_error == pytest.approx(float(expected))
    large = np.array([[60000.0, -60000.0]], np.float16)  # whose squares and differences are beyond 16 bits
    assert compare(large, -large, FREE).sqnr_db == pytest.approx(10 * math.log10(1 / 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_output_that_is_not_finite_fails_any_budget(value: float) -> None:
    outputs = logits()
    outputs[7, 3] = value
    found = compare(logits(), outputs, FREE)
    assert not found.ok
    assert not found.finite
    assert found.violations == ("outputs that are not finite",)
    assert (found.max_relative_error, found.sqnr_db, found.worst_cosine) == (LARGEST_ERROR, -LARGEST_SQNR_DB, -1.0)
    assert (found.top1_agreement, found.top5_overlap, found.flips) == (0.0, 0.0, Flips(40, 40))
    assert FREE.violations(found) == ("outputs that are not finite",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_proves_nothing(value: float) -> None:
    reference = logits()
    reference[0, 0] = value
    found = compare(reference, logits(), FREE)
    assert not found.ok
    assert found.violations == ("a reference that is not finite",)


@pytest.mark.parametrize("outputs", [logits(39), logits(40, 9), logits()[:, :, None], logits()[0]])
def test_arrays_of_another_shape_cannot_be_compared(outputs: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected two arrays \(images, classes\) of one shape, got \(40, 10\) and"):
        compare(logits(), outputs, FREE)


def test_arrays_of_one_shape_that_is_not_images_by_classes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"got \(40,\) and \(40,\)"):
        compare(logits()[:, 0], logits()[:, 0], FREE)


def test_a_flip_counts_where_the_reference_preferred_its_class_by_more_than_the_precisions_own_error() -> None:
    reference = np.array([[10.0, 0.0], [1.0, 0.5], [1.0, 0.0], [0.0, 9.0]])
    outputs = np.array([[10.0, 0.0], [0.5, 1.0], [0.0, 1.0], [0.0, 9.0]])  # two flips, of margins 0.5 and 1
    for own_error, counted in ((0.0, 2), (0.09, 2), (0.11, 1), (0.21, 0)):  # times the largest logit from the mean, 5
        found = compare(reference, outputs, Budget(own_error))
        assert found.flips == Flips(2, counted)
        assert found.top1_agreement == 1 - counted / 4


def test_a_margin_as_large_as_the_precisions_own_error_does_not_count() -> None:
    reference = np.array([[8.0, 6.0, -6.0, -8.0]])
    found = compare(reference, reference[:, [1, 0, 2, 3]], Budget(own_error=0.25))
    assert found.flips == Flips(1, 0)
    assert found.top1_agreement == 1.0


def test_what_a_flip_gave_up_is_the_gap_to_the_class_that_was_chosen() -> None:
    """Where two classes are close, a third one far behind them is as wrong as ever."""
    reference = np.tile([10.0, 9.99, 8.9], (500, 1))
    outputs = np.tile([8.0, 8.0, 9.0], (500, 1))
    found = compare(reference, outputs, Budget(own_error=0.05, min_agreement=0.98))
    assert (found.flips, found.top1_agreement, found.ok) == (Flips(500, 500), 0.0, False)
    (one, *_) = flips_between(reference, outputs, 0.05)
    assert (one.image, one.reference, one.got, one.counted) == (0, 0, 2, True)
    assert one.margin == pytest.approx(1.1 / 0.73)  # the mean is 9.63, and 8.9 is farthest from it
    assert compare(reference, np.tile([8.0, 9.0, 8.0], (500, 1)), Budget(own_error=0.05)).flips == Flips(
        500, 0
    )  # to the one as good as the first


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_a_number_added_to_all_logits_hides_no_flip(shift: float) -> None:
    """As in a network that ends in a LogSoftmax, or whose classifier's bias has drifted."""
    reference = np.array([[4.0, -4.0, 0.0], [3.0, 0.0, -3.0]]) + shift
    found = compare(reference, reference[:, ::-1], Budget(own_error=0.05, min_agreement=0.98))
    assert (found.flips, found.ok) == (Flips(2, 2), False)


def test_a_tie_in_the_reference_is_no_counted_flip() -> None:
    assert compare(np.array([[3.0, 3.0, 0.0]]), np.array([[2.9, 3.0, 0.0]]), FREE).flips == Flips(1, 0)


LIMITS = [
    (
        {"max_relative_error": 0.05},
        {"max_relative_error": 0.0625},
        "largest relative error 6.25e-02, budget <= 0.05",
    ),
    ({"min_agreement": 0.995}, {"top1_agreement": 0.99}, "top-1 agreement 99.00%, budget >= 99.5%"),
    ({"min_cosine": 0.99}, {"worst_cosine": 0.9875}, "worst cosine 0.98750, budget >= 0.99"),
    ({"min_sqnr_db": 20.0}, {"sqnr_db": 19.5}, "SQNR 19.5 dB, budget >= 20 dB"),
]
INSIDE = Comparison(True, True, 0.01, 0.001, 0.005, 0.999, 40.0, 0.999, 1.0, Flips(0, 0))


@pytest.mark.parametrize(("limit", "measured", "words"), LIMITS)
def test_each_limit_is_said_with_what_was_measured_when_it_is_passed(
    limit: dict[str, float], measured: dict[str, float], words: str
) -> None:
    budget = Budget(0.0, **limit)
    assert budget.violations(INSIDE) == ()
    assert budget.violations(dataclasses.replace(INSIDE, **measured)) == (words,)  # type: ignore[arg-type]  # mypy takes every field for the first
    (at_the_limit,) = limit.values()
    assert budget.violations(dataclasses.replace(INSIDE, **dict.fromkeys(measured, at_the_limit))) == ()  # type: ignore[arg-type]  # as above


def test_all_limits_that_are_passed_are_said_in_order() -> None:
    limits = {name: value for limit, _, _ in LIMITS for name, value in limit.items()}
    measured: dict[str, Any] = {name: value for _, measure, _ in LIMITS for name, value in measure.items()}
    said = Budget(0.0, **limits).violations(dataclasses.replace(INSIDE, **measured))
    assert said == tuple(words for _, _, words in LIMITS)


def test_a_limit_of_none_does_not_limit() -> None:
    hopeless = dataclasses.replace(
        INSIDE, max_relative_error=9.0, worst_cosine=-1.0, sqnr_db=-100.0, top1_agreement=0.0
    )
    assert FREE.violations(hopeless) == ()


@pytest.mark.parametrize(
    ("limit", "outputs", "word"),
    [
        ({"max_relative_error": 1e-3}, REFERENCE + np.array([[0.1, 0.0], [0.0, 0.0]]), "largest relative error"),
        ({"min_agreement": 0.9}, REFERENCE[:, ::-1], "top-1 agreement"),
        ({"min_cosine": 0.99}, REFERENCE[:, ::-1], "worst cosine"),
        ({"min_sqnr_db": 20.0}, REFERENCE * 1.2, "SQNR 14.0 dB"),
    ],
)
def test_outputs_out_of_budget_are_not_ok_and_say_why(
    limit: dict[str, float], outputs: NDArray[Any], word: str
) -> None:
    found = compare(REFERENCE, outputs, Budget(0.0, **limit))
    assert not found.ok
    assert len(found.violations) == 1
    assert found.violations[0].startswith(word)
    assert compare(REFERENCE, outputs, FREE).ok


def test_top5_overlap_is_the_share_of_the_references_five_that_came_back_in_any_order() -> None:
    reference = np.arange(10.0)[None, ::-1]  # top five: 0 1 2 3 4
    outputs = np.array([[5.0, 6.0, 9.0, 0.0, 1.0, 7.0, 8.0, 0.5, 0.1, 0.2]])  # top five: 2 6 5 1 0
    assert compare(reference, outputs, FREE).top5_overlap == pytest.approx(3 / 5)
    two = compare(np.concatenate([reference, reference]), np.concatenate([reference, outputs]), FREE)
    assert two.top5_overlap == pytest.approx(4 / 5)


def test_with_fewer_than_five_classes_all_are_among_the_top() -> None:
    assert compare(logits(classes=3), -logits(classes=3), FREE).top5_overlap == 1.0


def test_of_a_single_logit_the_class_is_its_sign_and_there_is_no_cosine() -> None:
    reference = np.array([[4.0], [-3.0], [0.2], [-8.0]])
    found = compare(reference, np.array([[3.9], [1.0], [-0.1], [-8.0]]), Budget(own_error=0.05, min_cosine=0.99))
    assert (found.flips, found.top1_agreement) == (Flips(2, 1), 0.75)  # 3 is more than 5 % of 8, 0.2 is less
    assert (found.worst_cosine, found.top5_overlap) == (None, 1.0)
    assert found.violations == ()
    assert [(flip.image, flip.reference, flip.got, flip.margin) for flip in flips_between(reference, -reference, 0.0)][
        :2
    ] == [
        (3, 0, 1, 1.0),
        (0, 1, 0, 0.5),
    ]
    assert accuracy(reference, -reference, np.array([1, 0, 1, 1])) == Accuracy(
        4, 0.75, 0.25, wilson_interval(1, 4), lost=3, gained=1
    )
    feature = {"features": reference}
    assert compare_features(feature, feature, FREE).worst_cosine is None


@pytest.mark.parametrize(
    ("reference", "outputs"),
    [
        (logits(), logits()),
        (logits(), logits() + np.float32(0.25)),
        (logits(), np.full_like(logits(), np.nan)),
        (np.full_like(logits(), np.inf), logits()),
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.zeros((2, 3)), np.ones((2, 3))),
        (logits(), logits() * np.float32(1e30)),
        (logits(), logits().astype(np.float16)),
    ],
    ids=["equal", "close", "nan", "infinite reference", "zeros", "against zeros", "huge", "half"],
)
def test_every_measure_is_a_plain_number_that_json_can_hold(reference: NDArray[Any], outputs: NDArray[Any]) -> None:
    found = dataclasses.asdict(
        compare(reference, outputs, Budget(0.01, 0.01, 0.99, 0.99, 20.0), [(np.arange(1), outputs[:1])])
    )
    said = ("violations", "undecided", "kept")
    assert json.loads(json.dumps(found, allow_nan=False)) == {**found, **{name: list(found[name]) for name in said}}
    assert found.pop("outputs") == {}
    kinds = {name: type(value) for name, value in found.items()}
    assert kinds.pop("ok") is kinds.pop("finite") is bool
    assert kinds.pop("flips") is dict
    assert {kinds.pop(name) for name in said} == {tuple}
    assert kinds.pop("images") is int
    assert kinds.pop("max_batch_difference") is (float if found["finite"] else type(None))
    assert set(kinds.values()) == {float}
    assert {type(value) for value in found["flips"].values()} == {int}


def features() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(2)
    return {
        "layer1": random.normal(0, 9, (6, 4, 5, 5)).astype(np.float32),
        "layer2": random.normal(0, 0.1, (6, 8, 2, 2)).astype(np.float32),
    }


def test_each_feature_is_measured_as_logits_of_its_values_would_be_and_the_worst_is_what_is_said() -> None:
    reference = features()
    outputs = {name: values + np.float32(0.002) * np.sign(values) for name, values in reference.items()}
    found = compare_features(reference, outputs, FREE)
    assert found.ok
    assert list(found.outputs) == ["layer1", "layer2"]
    for name, measured in found.outputs.items():
        alone = compare(reference[name].reshape(6, -1), outputs[name].reshape(6, -1), FREE)
        for measure in ("max_relative_error", "mean_relative_error", "p99_relative_error", "worst_cosine", "sqnr_db"):
            assert getattr(measured, measure) == pytest.approx(getattr(alone, measure), rel=1e-3), (
                measure
            )  # differences in single precision
        assert (measured.top1_agreement, measured.top5_overlap, measured.flips, measured.outputs) == (
            None,
            None,
            None,
            {},
        )
    assert found.max_relative_error == found.outputs["layer2"].max_relative_error
    assert found.mean_relative_error == found.outputs["layer2"].mean_relative_error
    assert (found.worst_cosine, found.sqnr_db) == (
        found.outputs["layer2"].worst_cosine,
        found.outputs["layer2"].sqnr_db,
    )
    assert (found.top1_agreement, found.top5_overlap, found.flips) == (None, None, None)


def test_a_feature_out_of_budget_is_named_and_agreement_is_not_asked_of_it() -> None:
    reference, budget = features(), Budget(0.0, max_relative_error=1e-3, min_agreement=1.0, min_cosine=0.99)
    assert compare_features(reference, reference, budget).violations == ()
    found = compare_features(reference, {**reference, "layer2": reference["layer2"] * np.float32(1.1)}, budget)
    assert not found.ok
    assert found.violations == ("layer2: largest relative error 1.00e-01, budget <= 0.001",)
    assert found.kept == ("worst cosine 1.00000, budget >= 0.99",)
    assert found.outputs["layer1"].ok


def test_a_feature_that_is_not_finite_fails_any_budget_and_is_named() -> None:
    reference = features()
    broken = {**reference, "layer1": np.full_like(reference["layer1"], np.nan)}
    found = compare_features(reference, broken, FREE)
    assert (found.ok, found.finite, found.violations) == (False, False, ("layer1: outputs that are not finite",))
    assert compare_features(broken, reference, FREE).violations == ("layer1: a reference that is not finite",)
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))["outputs"]["layer2"]["ok"]


def test_features_of_another_shape_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"expected 'layer1' as two arrays \(images, ...\) of one shape"):
        compare_features(features(), {**features(), "layer1": features()["layer2"]}, FREE)


def test_outputs_called_logits_alone_are_a_classifiers() -> None:
    assert compare_outputs({"logits": logits()}, {"logits": logits()}, FREE) == compare(logits(), logits(), FREE)
    assert compare_outputs({"features": logits()}, {"features": logits()}, FREE).flips is None


def test_a_report_is_true_when_it_is_ok() -> None:
    assert ParityReport(True, 1, (1,), {"onnxruntime": INSIDE})
    failed = ParityReport(False, 1, (1,), {"onnxruntime": dataclasses.replace(INSIDE, ok=False)})
    assert not failed
    error = ParityError("out of budget", failed)
    assert error.report is failed
    assert error.exit_code == 4


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17,
    # table I, method 3
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_mirrors_and_stays_between_nothing_and_all() -> None:
    for successes in range(21):
        low, high = wilson_interval(successes, 20)
        assert 0 <= low <= successes / 20 <= high <= 1
        assert wilson_interval(20 - successes, 20) == pytest.approx((1 - high, 1 - low))


def test_accuracy_counts_the_labels_that_each_side_hits() -> None:
    reference = np.eye(4)
    outputs = np.eye(4)[[0, 1, 3, 2]]
    found = accuracy(reference, outputs, np.array([0, 1, 2, 0]))
    assert found == Accuracy(4, 0.75, 0.5, wilson_interval(2, 4), lost=1, gained=0)
    found = accuracy(reference, outputs, np.array([0, 1, 3, 2]))  # the two that the reference has wrong
    assert (found.lost, found.gained, found.reference_top1, found.top1) == (0, 2, 0.5, 1.0)
