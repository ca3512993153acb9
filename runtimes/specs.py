"""A model's inputs and outputs: tensor specifications, the batch range, and the check of what a caller feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from runtimes.errors import BadInput, PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE = ("height", "width")
"""Names of the free dimensions of a model that takes pictures of any size."""
LARGEST_BATCH = 1 << 16
"""A batch that a manifest or a user asks for is made in memory; no device runs more images at once."""
PICTURE_SIDES = (1, 512, 2048)
"""Sides in pixels for which an engine for pictures of any size is built: smallest, tuned for, largest. Its memory is
that of a batch of the largest."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dtype` is numpy's name; a dimension is its size, or the name of a free one (`batch`)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class BatchRange:
    """The batch sizes a model is made for: the smallest, the one to tune for, the largest."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise PlanError(
                f"expected a batch range with 1 <= min <= opt <= max, got {self}; write N or MIN:OPT:MAX, for example "
                "1:8:32"
            )
        if self.max > LARGEST_BATCH:
            raise PlanError(f"expected a batch of at most {LARGEST_BATCH:,} images, got {self}; write a smaller one")

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Parse `N` or `MIN:OPT:MAX`.

        Raises:
            PlanError: neither, or out of order.
        """
        try:
            sizes = [int(part) for part in text.split(":")]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 3):
            raise PlanError(f"expected a batch as N or MIN:OPT:MAX, got '{text}'; for example 8 or 1:8:32")
        return cls(sizes[0], sizes[len(sizes) // 2], sizes[-1])

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @property
    def is_static(self) -> bool:
        return self.min == self.max

    @property
    def proof_sizes(self) -> tuple[int, ...]:
        """The batch sizes at which parity is checked: the smallest, one in between and the largest, each once."""
        middle = self.opt if self.min < self.opt < self.max else (self.min + self.max) // 2
        return tuple(sorted({self.min, middle, self.max}))

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Split `count` rows into batches of at most `max`: yields (start, stop)."""
        for start in range(0, count, self.max):
            yield start, min(start + self.max, count)


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> int:
    """Check every name, dtype and shape of `feeds` against `specs`; returns the batch size.

    A free dimension takes any size from 1 on, the same one wherever its name stands.

    Raises:
        BadInput: says which input, what was expected and what came.
    """
    if not isinstance(feeds, Mapping) or feeds.keys() != {spec.name for spec in specs}:
        raise _other_names(specs, feeds)
    free: dict[str, int] = {}
    for spec in specs:
        array = feeds[spec.name]
        dtype = _name_of_dtype(getattr(array, "dtype", None))
        if dtype is None:
            raise BadInput(
                f"input '{spec.name}': expected a numpy array, got {type(array).__name__}; convert it with "
                "numpy.asarray"
            )
        if dtype != spec.dtype:
            raise BadInput(
                f"input '{spec.name}': expected {spec.dtype}, got {dtype}; convert it with .astype('{spec.dtype}')"
            )
        shape = array.shape
        fits = len(shape) == len(spec.shape)
        for size, expected in zip(shape, spec.shape, strict=False):
            fits &= size == (free.setdefault(expected, size) if isinstance(expected, str) else expected) and size > 0
        if not fits:
            expected_shape = "x".join(map(str, spec.shape))
            raise BadInput(
                f"input '{spec.name}': expected shape {expected_shape}, got {'x'.join(map(str, shape)) or 'a scalar'}"
            )
    return int(feeds[specs[0].name].shape[0])


def _other_names(specs: Sequence[TensorSpec], feeds: object) -> BadInput:
    names = sorted(spec.name for spec in specs)
    if not isinstance(feeds, Mapping):
        return BadInput(f"expected inputs {names} as arrays by name, got {type(feeds).__name__}; feed a dict")
    return BadInput(f"expected inputs {names}, got {sorted(map(str, feeds))}")


@cache
def _name_of_dtype(dtype: object) -> str | None:
    """The name of numpy's dtype, which numpy makes up anew each time it is asked for; None for anything else."""
    return getattr(dtype, "name", None)


def with_free_batch(spec: TensorSpec) -> TensorSpec:
    """The input as callers may give it: any number of rows even if the model fixes its batch, since they are split and
    padded."""
    return replace(spec, shape=("batch", *spec.shape[1:])) if spec.shape and isinstance(spec.shape[0], int) else spec


def declared_batch(inputs: Sequence[TensorSpec]) -> BatchRange | None:
    """The batch range of a model whose first dimension is a fixed number: that size alone. Otherwise None.

    Raises:
        PlanError: it is no size of a batch; names the input, and not the model, which nobody knows here.
    """
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    if not isinstance(first, int):
        return None
    if not 1 <= first <= LARGEST_BATCH:
        raise PlanError(
            f"input '{inputs[0].name}': expected a batch of 1 to {LARGEST_BATCH:,} images, or a free one, got {first}; "
            "make the model again, for such a batch"
        )
    return BatchRange(first, first, first)
