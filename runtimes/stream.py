"""Run a model over pictures that are read and preprocessed in threads, ahead of it, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtimes.ahead import map_ahead
from runtimes.errors import BadInput
from runtimes.picture_file import Picture, open_picture, picture_from_array
from runtimes.preprocess import PIXELS, Preprocess, takes_any_size
from runtimes.specs import BatchRange, TensorSpec

AnyPicture = str | os.PathLike[str] | Picture
"""A picture as callers have it: the path of its file, one that Pillow opened, or pixels of uint8 (height, width,
channels)."""
AT_ONCE = 32
"""The largest batch that is chosen where none is asked for."""
Arrays = dict[str, NDArray[Any]]
"""A batch's inputs or outputs by name."""


def preparer(preprocess: Preprocess, source: TensorSpec) -> Callable[[Picture], NDArray[Any]]:
    """A function that turns a picture into a model's input for it.

    That is uint8 (height, width, channels) for a model with its preprocessing inside, of the picture's own size where
    it resizes too, and float32 (channels, height, width) for others.
    """
    if takes_any_size(source):
        return preprocess.picture
    return preprocess.pixels if source.dtype == PIXELS else preprocess


@dataclass(frozen=True)
class StreamPlan:
    """How pictures are fed to a model: the name of its input, what prepares a picture for it, and how many share a
    batch."""

    input: str
    prepare: Callable[[Picture], NDArray[Any]]
    batch: int


def stream_plan(
    inputs: Sequence[TensorSpec], tuned_for: BatchRange | None, preprocess: Preprocess | None, batch: int | None
) -> StreamPlan:
    """Plan a stream for a model with these inputs, `tuned_for` these batches; see `Runtime.stream`.

    Raises:
        BadInput: no preprocessing, a model with several inputs, or a `batch` that is no number of pictures.
    """
    if preprocess is None:
        raise BadInput(
            "expected a model that knows its preprocessing, got a single file; open the bundle, or give preprocess"
        )
    if len(inputs) != 1:
        raise BadInput(f"expected a model with one input, of pictures, got {len(inputs)}; prepare arrays and use run")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise BadInput(f"expected a batch of at least 1 picture, got {batch!r}; leave it out for the model's own")
    (source,) = inputs
    own = 1 if takes_any_size(source) else min(tuned_for.opt, AT_ONCE) if tuned_for is not None else AT_ONCE
    return StreamPlan(source.name, preparer(preprocess, source), batch or own)


def outputs_of_pictures(
    pictures: Iterable[AnyPicture],
    plan: StreamPlan,
    run_each: Callable[[Iterator[Arrays]], Iterator[Arrays]],
    threads: int,
) -> Generator[Arrays, None, None]:
    """The outputs for each batch of pictures, in order; `run_each` gives those for inputs."""
    ahead = 2 * plan.batch + threads
    failed: list[BadInput] = []

    def rows() -> Generator[NDArray[Any], None, None]:
        """The inputs up to the first picture that cannot be read."""
        read = map_ahead(lambda one: _row(*one, plan.prepare), enumerate(pictures), ahead=ahead, threads=threads)
        with closing(read):
            try:
                yield from read
            except BadInput as error:
                failed.append(error)

    with closing(rows()) as found:
        yield from run_each({plan.input: np.stack(part)} for part in _equal_parts(found, plan.batch))
    if failed:  # what came before it was run first
        raise failed[0]


class OutputStream(Iterator[Arrays]):
    """The outputs of a stream of pictures, batch by batch. Closing it, or its runtime, ends its threads."""

    def __init__(self, outputs: Generator[Arrays, None, None], check_usable: Callable[[], None]) -> None:
        self._outputs, self._check_usable = outputs, check_usable

    def __next__(self) -> Arrays:
        self._check_usable()
        return next(self._outputs)

    def close(self) -> None:
        """End the stream and its threads. A second call does nothing."""
        self._outputs.close()


def _equal_parts(rows: Iterable[NDArray[Any]], most: int) -> Iterator[list[NDArray[Any]]]:
    """Neighbours of equal shape, at most `most` at a time."""
    held: list[NDArray[Any]] = []
    for row in rows:
        if held and row.shape != held[0].shape:
            yield held
            held = []
        held.append(row)
        if len(held) == most:
            yield held
            held = []
    if held:
        yield held


def _row(place: int, given: AnyPicture, prepare: Callable[[Picture], NDArray[Any]]) -> NDArray[Any]:
    """One picture's input.

    Raises:
        BadInput: it cannot be read, or is not for this model; names it.
    """
    name = f"picture {place}"
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        picture = open_picture(Path(given))
    else:
        picture = _loaded(given, name)
    try:
        return prepare(picture)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error
    except MemoryError as error:
        raise BadInput(f"cannot prepare {name}: there is not enough memory for it; make it smaller") from error


def _loaded(given: object, name: str) -> Picture:
    if isinstance(given, Image.Image):
        try:
            given.load()
        except Exception as error:  # whatever its decoder stumbles over
            raise BadInput(f"cannot read {name}: {' '.join(str(error).split()) or type(error).__name__}") from error
        return given
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3) and given.size:
        return picture_from_array(given)
    found = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
    raise BadInput(
        f"{name}: expected a path, a picture opened with Pillow, or pixels of uint8 (height, width, channels), got "
        f"{found}; give one of these"
    )
