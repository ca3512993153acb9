"""What goes in and out of a model: batch ranges, and the check of what is fed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtimes.errors import BadInput, PlanError
from runtimes.specs import BatchRange, TensorSpec, check_feeds

IMAGE = TensorSpec("image", "float32", ("batch", 3, 4, 4))
SCALE = TensorSpec("scale", "float32", ("batch", 1))


@pytest.mark.parametrize(
    ("text", "expected"), [("1", (1, 1, 1)), ("8", (8, 8, 8)), ("1:8:32", (1, 8, 32)), ("4:4:4", (4, 4, 4))]
)
def test_a_batch_is_read_as_one_size_or_as_three(text: str, expected: tuple[int, int, int]) -> None:
    batch = BatchRange.parse(text)
    assert (batch.min, batch.opt, batch.max) == expected


@pytest.mark.parametrize("text", ["", "x", "1:2", "1:2:3:4", "1::3", "1.5", "1,8,32", "1:8:many"])
def test_a_batch_that_is_no_batch_is_refused_with_what_came_and_what_would_do(text: str) -> None:
    with pytest.raises(
        PlanError, match=re.escape(f"expected a batch as N or MIN:OPT:MAX, got '{text}'; for example 8 or 1:8:32")
    ):
        BatchRange.parse(text)


@pytest.mark.parametrize("text", ["0:1:1", "-1:1:1", "2:1:3", "1:4:3", "3:2:1"])
def test_a_batch_range_out_of_order_is_refused_with_what_came(text: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"expected a batch range with 1 <= min <= opt <= max, got {text}")):
        BatchRange.parse(text)


def test_a_single_size_below_one_is_refused() -> None:
    with pytest.raises(PlanError, match="got 0:0:0"):
        BatchRange.parse("0")


def test_a_batch_range_prints_as_it_is_parsed() -> None:
    assert str(BatchRange(1, 8, 32)) == "1:8:32"
    assert BatchRange.parse(str(BatchRange(2, 3, 5))) == BatchRange(2, 3, 5)


def test_a_batch_is_static_when_it_has_one_size() -> None:
    assert BatchRange(4, 4, 4).is_static
    assert not BatchRange(4, 4, 5).is_static


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (BatchRange(1, 8, 32), (1, 8, 32)),
        (BatchRange(1, 1, 32), (1, 16, 32)),
        (BatchRange(1, 32, 32), (1, 16, 32)),
        (BatchRange(4, 4, 4), (4,)),
        (BatchRange(1, 1, 2), (1, 2)),
        (BatchRange(1, 2, 3), (1, 2, 3)),
    ],
)
def test_a_proof_covers_the_smallest_the_largest_and_one_in_between_each_once(
    batch: BatchRange, expected: tuple[int, ...]
) -> None:
    assert batch.proof_sizes == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [(0, 1)]), (4, [(0, 4)]), (5, [(0, 4), (4, 5)]), (8, [(0, 4), (4, 8)]), (0, [])],
)
def test_chunks_cover_all_rows_once_and_none_is_above_the_largest_batch(
    count: int, expected: list[tuple[int, int]]
) -> None:
    assert list(BatchRange(2, 3, 4).chunks(count)) == expected


def feeds(image: NDArray[Any] | None = None, scale: NDArray[Any] | None = None) -> dict[str, NDArray[Any]]:
    return {
        "image": np.zeros((2, 3, 4, 4), np.float32) if image is None else image,
        "scale": np.zeros((2, 1), np.float32) if scale is None else scale,
    }


def test_feeds_that_fit_give_their_batch_size() -> None:
    assert check_feeds([IMAGE, SCALE], feeds()) == 2


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({}, "[]"),
        ({"image": np.zeros((2, 3, 4, 4), np.float32)}, "['image']"),
        ({**feeds(), "extra": np.zeros(1, np.float32)}, "['extra', 'image', 'scale']"),
        ({"Image": np.zeros((2, 3, 4, 4), np.float32), "scale": np.zeros((2, 1), np.float32)}, "['Image', 'scale']"),
    ],
)
def test_other_names_are_refused_with_the_names_expected_and_those_that_came(
    wrong: dict[str, NDArray[Any]], got: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(f"expected inputs ['image', 'scale'], got {got}")):
        check_feeds([IMAGE, SCALE], wrong)


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64", "bool"])
def test_another_dtype_is_refused_with_the_input_both_dtypes_and_the_remedy(dtype: str) -> None:
    message = f"input 'image': expected float32, got {dtype}; convert it with .astype('float32')"
    with pytest.raises(BadInput, match=re.escape(message)):
        check_feeds([IMAGE, SCALE], feeds(image=np.zeros((2, 3, 4, 4), dtype)))


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((2, 3, 4, 5), "2x3x4x5"),
        ((2, 1, 4, 4), "2x1x4x4"),
        ((3, 4, 4), "3x4x4"),
        ((2, 3, 4, 4, 1), "2x3x4x4x1"),
        ((0, 3, 4, 4), "0x3x4x4"),
        ((), "a scalar"),
    ],
)
def test_another_shape_is_refused_with_the_input_and_both_shapes(shape: tuple[int, ...], got: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"input 'image': expected shape batchx3x4x4, got {got}")):
        check_feeds([IMAGE, SCALE], feeds(image=np.zeros(shape, np.float32)))


def test_a_free_dimension_has_one_size_wherever_its_name_stands() -> None:
    with pytest.raises(BadInput, match="input 'scale': expected shape batchx1, got 3x1"):
        check_feeds([IMAGE, SCALE], feeds(scale=np.zeros((3, 1), np.float32)))


def test_free_dimensions_of_different_names_take_different_sizes() -> None:
    specs = [TensorSpec("x", "float32", ("batch", "height", "width"))]
    assert check_feeds(specs, {"x": np.zeros((2, 5, 7), np.float32)}) == 2


def test_a_fixed_batch_takes_that_size_alone() -> None:
    specs = [TensorSpec("x", "uint8", (4, 2))]
    assert check_feeds(specs, {"x": np.zeros((4, 2), np.uint8)}) == 4
    with pytest.raises(BadInput, match="input 'x': expected shape 4x2, got 3x2"):
        check_feeds(specs, {"x": np.zeros((3, 2), np.uint8)})
