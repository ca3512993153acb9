"""Decode pictures ahead in threads, while earlier ones are worked on; those that cannot be read are reported."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from calibration.data import ImageSource
from runtimes.ahead import map_ahead
from runtimes.errors import BadInput, CalibrationError
from runtimes.picture_file import Picture

LARGEST_UNREADABLE_SHARE = 0.01

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Unreadable:
    """Stands for a picture that cannot be read, and says why."""

    reason: str


def read_ahead(
    source: ImageSource,
    places: Iterable[int],
    prepare: Callable[[Picture], Prepared],
    *,
    ahead: int,
    threads: int | None = None,
) -> Generator[Prepared | Unreadable, None, None]:
    """Decode and `prepare` the pictures at `places` in threads, and yield the results in order.

    At most `ahead` results wait to be taken. A picture is `Unreadable` where the source or `prepare` raises BadInput,
    or memory runs out for it; any other error is raised. None takes as many threads as the process may use cores.
    """

    def read(place: int) -> Prepared | Unreadable:
        name = source.names[place] if source.names is not None else f"{source.name} {place}"
        try:
            picture = source.picture(place)
        except BadInput as error:
            return Unreadable(str(error))  # which names it
        except MemoryError:
            return Unreadable(f"cannot read the picture {name}: there is not enough memory for it")
        try:
            return prepare(picture)
        except BadInput as error:
            return Unreadable(f"{name}: {error}")
        except MemoryError:
            return Unreadable(f"cannot prepare the picture {name}: there is not enough memory for it")

    return map_ahead(read, places, ahead=ahead, threads=threads)


def check_readable(unreadable: Sequence[str], count: int) -> None:
    """Refuse a data set of which too many pictures cannot be read.

    Raises:
        CalibrationError: more than one in a hundred of `count` pictures cannot be read; names some.
    """
    if len(unreadable) > LARGEST_UNREADABLE_SHARE * count:
        some = "; ".join(unreadable[:3])
        raise CalibrationError(
            f"{len(unreadable)} of the {count} pictures cannot be read, more than 1 %: {some}; repair or remove them"
        )
