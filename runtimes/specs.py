"""What goes in and out of a model: tensor specifications, the batch range, and the one check of what is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtimes.errors import BadInput, PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE = ("height", "width")
"""Names of the free dimensions of a model that takes pictures of any size."""
PICTURE_SIDES = (1, 512, 2048)
"""In pixels, of an engine for pictures of any size: the smallest, the one to tune for, the largest. Its memory is that
of a batch of the largest."""


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

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """`N` or `MIN:OPT:MAX`.

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
        """The sizes a proof covers: the smallest, the one in between and the largest, each once."""
        middle = self.opt if self.min < self.opt < self.max else (self.min + self.max) // 2
        return tuple(sorted({self.min, middle, self.max}))

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Rows `start:stop` that cover `count` rows, none larger than `max`."""
        for start in range(0, count, self.max):
            yield start, min(start + self.max, count)


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> int:
    """The batch size of `feeds`, once every name, dtype and shape agrees with `specs`.

    A free dimension takes any size from 1 on, the same one wherever its name stands.

    Raises:
        BadInput: says which input, what was expected and what came.
    """
    names = sorted(spec.name for spec in specs)
    if not isinstance(feeds, Mapping):
        raise BadInput(f"expected inputs {names} as arrays by name, got {type(feeds).__name__}; feed a dict")
    if set(feeds) != set(names):
        raise BadInput(f"expected inputs {names}, got {sorted(map(str, feeds))}")
    free: dict[str, int] = {}
    for spec in specs:
        array = feeds[spec.name]
        if not hasattr(getattr(array, "dtype", None), "name"):
            raise BadInput(
                f"input '{spec.name}': expected a numpy array, got {type(array).__name__}; convert it with "
                "numpy.asarray"
            )
        if array.dtype.name != spec.dtype:
            raise BadInput(
                f"input '{spec.name}': expected {spec.dtype}, got {array.dtype.name}; convert it with "
                f".astype('{spec.dtype}')"
            )
        fits = array.ndim == len(spec.shape) and all(
            size == (free.setdefault(expected, size) if isinstance(expected, str) else expected) and size > 0
            for size, expected in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            expected_shape = "x".join(map(str, spec.shape))
            raise BadInput(
                f"input '{spec.name}': expected shape {expected_shape}, got "
                f"{'x'.join(map(str, array.shape)) or 'a scalar'}"
            )
    return int(feeds[specs[0].name].shape[0])
