"""A backend's answers at several batch sizes: an image counts once, and the sizes are held against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.parity.budget import Budget
from runtimes.parity.evidence import Evidence, compare_backend
from runtimes.parity.flips import Flip, Flips
from runtimes.parity.intervals import wilson_interval
from runtimes.parity.measures import LARGEST_ERROR, Accuracy
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import DEFAULT_TUNING, Tuning

Wrong = Callable[[NDArray[Any], int], NDArray[Any]]
BATCH = BatchRange(1, 8, 32)
CLASSES = 4


@final
class Echo(Runtime):
    """Answers with what it is fed, after `wrong(rows, batch size)` has been at it."""

    FILE = "none"

    def __init__(self, names: tuple[str, ...], wrong: Wrong) -> None:
        super().__init__(
            [TensorSpec("input", "float32", ("batch", CLASSES))],
            [TensorSpec(name, "float32", ("batch", CLASSES)) for name in names],
            None,
        )
        self._wrong = wrong
        self.sizes: list[int] = []

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> Echo:
        raise NotImplementedError

    @property
    def provider(self) -> str:
        return "cpu"

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = feeds["input"]
        self.sizes.append(len(rows))
        return {spec.name: self._wrong(rows.copy(), len(rows)) for spec in self.outputs}

    def _close(self) -> None:
        pass


def right(rows: NDArray[Any], size: int) -> NDArray[Any]:
    return rows


def logits(images: int) -> NDArray[np.float32]:
    """Each image's first class leads the second by 10 % of the largest logit, the third by 50 %, the last by 100 %.

    The first image's mean is 6, so that margins are relative to 6.
    """
    found = np.tile(np.array([10.0, 9.0, 5.0, 0.0], np.float32), (images, 1))
    found[:, 1] -= np.arange(images, dtype=np.float32) / 1000  # so that images differ
    return found


def ask(images: int, wrong: Wrong = right, budget: Budget | None = None, names: tuple[str, ...] = ("logits",)) -> Any:
    values = logits(images)
    runtime = Echo(names, wrong)
    return compare_backend(
        Evidence(values, dict.fromkeys(names, values)), "echo", runtime, budget or Budget(0.05), BATCH
    ), runtime


def test_every_size_is_asked_and_all_images_at_the_largest() -> None:
    answer, runtime = ask(70)
    assert runtime.sizes == [1, 8, 32, 32, 32]
    measured = answer.report.backends["echo"]
    assert (answer.ok, measured.max_relative_error, measured.max_batch_difference) == (True, 0.0, 0.0)
    assert (answer.report.images, answer.report.batches) == (70, (1, 8, 32))


@pytest.mark.parametrize("changed", [0, 20])
def test_one_image_of_32_that_flips_is_one_of_32_wherever_it_stands(changed: int) -> None:
    """The first image is in every batch and the twentieth in the largest alone."""

    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        place = np.flatnonzero(rows[:, 1] == logits(32)[changed, 1])
        rows[place] = rows[place][:, ::-1]
        return rows

    answer, _ = ask(32, wrong)
    measured = answer.report.backends["echo"]
    assert (measured.top1_agreement, measured.flips) == (1 - 1 / 32, Flips(1, 1))
    assert answer.flips == (Flip(changed, 0, 3, 10 / 6, counted=True),)
    assert measured.mean_relative_error == pytest.approx(
        float(np.abs(logits(32)[changed] - logits(32)[changed, ::-1]).sum() / 10 / 128)
    )
    assert measured.max_batch_difference == 0.0  # it is wrong alike at every size


def test_images_that_do_not_fill_a_batch_count_once_though_they_are_fed_twice() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        place = np.flatnonzero(rows[:, 1] == logits(5)[0, 1])
        rows[place] = rows[place][:, ::-1]
        return rows

    measured = ask(5, wrong)[0].report.backends["echo"]
    assert (measured.top1_agreement, measured.flips) == (1 - 1 / 5, Flips(1, 1))


def test_a_batch_size_that_answers_otherwise_breaks_a_limit_of_its_own() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        return rows + np.float32(0.4) if size == 8 else rows

    answer, _ = ask(32, wrong, Budget(0.05, min_agreement=1.0, max_batch_difference=0.02))
    measured = answer.report.backends["echo"]
    assert measured.top1_agreement == 1.0
    assert measured.max_batch_difference == pytest.approx(0.04)
    assert measured.max_relative_error == pytest.approx(0.04)  # the worst of all answers
    assert measured.mean_relative_error == 0.0  # of the largest batch
    assert [limit.text for limit in answer.limits if not limit.ok] == [
        "difference between batch sizes 4.00e-02, budget <= 0.02"
    ]
    assert not answer.ok
    assert ask(32, wrong, Budget(0.05, max_batch_difference=0.05))[0].ok


def test_another_class_in_a_small_batch_is_no_flip_but_a_difference_between_sizes() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        return rows[:, ::-1] if size == 1 else rows

    answer, _ = ask(32, wrong, Budget(0.05, min_agreement=1.0, max_batch_difference=0.05))
    measured = answer.report.backends["echo"]
    assert (measured.flips, measured.max_batch_difference) == (Flips(0, 0), pytest.approx(1.0))
    assert measured.worst_cosine is not None
    assert measured.worst_cosine < 0.7
    assert not answer.ok


def test_a_small_batch_that_is_not_finite_fails() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        return rows * np.float32("nan") if size == 1 else rows

    answer, _ = ask(32, wrong)
    measured = answer.report.backends["echo"]
    assert (answer.ok, measured.finite, measured.max_relative_error, answer.errors) == (
        False,
        False,
        LARGEST_ERROR,
        None,
    )
    assert measured.flips == Flips(32, 32)


def test_features_are_held_against_each_other_too() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        return rows + np.float32(0.4) if size == 8 else rows

    answer, _ = ask(32, wrong, Budget(0.05, max_batch_difference=0.02), ("layer1", "layer2"))
    measured = answer.report.backends["echo"]
    assert measured.max_batch_difference == pytest.approx(0.04)
    said = "difference between batch sizes 4.00e-02, budget <= 0.02"
    assert [limit.text for limit in answer.limits if not limit.ok] == [f"layer1: {said}; layer2: {said}"]


def test_accuracy_is_that_of_each_image_once() -> None:
    def wrong(rows: NDArray[Any], size: int) -> NDArray[Any]:
        place = np.flatnonzero(rows[:, 1] == logits(5)[0, 1])
        rows[place] = rows[place][:, ::-1]
        return rows

    evidence = Evidence(logits(5), {"logits": logits(5)}, np.zeros(5, np.int64))
    answer = compare_backend(evidence, "echo", Echo(("logits",), wrong), Budget(0.05), BATCH)
    assert answer.accuracy == Accuracy(5, 1.0, 0.8, wilson_interval(4, 5), lost=1, gained=0)
