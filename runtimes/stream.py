"""Run a model over pictures that are read and preprocessed in threads, ahead of it, in bounded memory."""

from __future__ import annotations

import ctypes
import inspect
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtimes.ahead import map_ahead
from runtimes.errors import BadInput
from runtimes.picture_file import Picture, open_picture, picture_from_array
from runtimes.preprocess import PIXELS, Preprocess, takes_any_size
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import Tuning

AnyPicture = str | os.PathLike[str] | Picture
"""A picture as callers have it: the path of its file, one that Pillow opened, or pixels of uint8 (height, width,
channels)."""
AT_ONCE = 32
"""The largest batch that is chosen where none is asked for."""
Outputs = dict[str, NDArray[Any]]


class Streams(Protocol):
    """What a stream needs of a `runtimes.base.Runtime`."""

    inputs: tuple[TensorSpec, ...]
    batch: BatchRange | None
    tuning: Tuning

    def _run_each(self, batches: Iterator[Outputs]) -> Iterator[Outputs]: ...

    def _check_usable(self) -> None: ...


def preparer(preprocess: Preprocess, source: TensorSpec) -> Callable[[Picture], NDArray[Any]]:
    """A function that turns a picture into a model's input for it.

    That is uint8 (height, width, channels) for a model with its preprocessing inside, of the picture's own size where
    it resizes too, and float32 (channels, height, width) for others.
    """
    if takes_any_size(source):
        return preprocess.picture
    return preprocess.pixels if source.dtype == PIXELS else preprocess


def batch_size(runtime: Streams) -> int:
    """How many pictures to run at once where nobody says: what the model is tuned for, up to AT_ONCE; one where they
    come in any size."""
    if takes_any_size(runtime.inputs[0]):
        return 1
    return min(runtime.batch.opt, AT_ONCE) if runtime.batch is not None else AT_ONCE


def open_stream(
    runtime: Streams, pictures: Iterable[AnyPicture], preprocess: Preprocess | None, batch: int | None
) -> OutputStream:
    """The stream of a runtime's outputs for pictures. See `runtimes.base.Runtime.stream`.

    Raises:
        BadInput: there is no preprocessing, the model takes more than pictures, or `batch` is no number of pictures.
    """
    if preprocess is None:
        raise BadInput(
            "expected a model that knows its preprocessing, got a single file; open the bundle, or give preprocess"
        )
    if len(runtime.inputs) != 1:
        raise BadInput(
            f"expected a model with one input, of pictures, got {len(runtime.inputs)}; prepare arrays and use run"
        )
    if batch is not None and (type(batch) is not int or batch < 1):
        raise BadInput(f"expected a batch of at least 1 picture, got {batch!r}; leave it out for the model's own")
    return OutputStream(runtime, _outputs_of_pictures(runtime, pictures, preprocess, batch or batch_size(runtime)))


def _outputs_of_pictures(
    runtime: Streams, pictures: Iterable[AnyPicture], preprocess: Preprocess, batch: int
) -> Generator[Outputs, None, None]:
    """The outputs for each batch of pictures, in order. See `Runtime.stream`."""
    name, prepare = runtime.inputs[0].name, preparer(preprocess, runtime.inputs[0])
    threads = runtime.tuning.cores
    failed: list[BadInput] = []

    def rows() -> Generator[NDArray[Any], None, None]:
        """The inputs up to the first picture that cannot be read."""
        numbered = enumerate(pictures)
        with closing(
            map_ahead(lambda one: _row(*one, prepare), numbered, ahead=2 * batch + threads, threads=threads)
        ) as found:
            try:
                yield from found
            except BadInput as error:
                failed.append(error)

    with closing(rows()) as found:
        yield from runtime._run_each({name: np.stack(part)} for part in _equal_parts(found, batch))
    if failed:  # what came before it was run first
        raise failed[0]


class OutputStream(Iterator[Outputs]):
    """The outputs of a stream of pictures. Closing it, or its runtime, ends its threads.

    Threads may share it: each gets the next batch's outputs, once the thread before it has got its own.
    """

    def __init__(self, runtime: Streams, outputs: Generator[Outputs, None, None]) -> None:
        self._runtime, self._outputs = runtime, outputs
        self._lock, self._process, self._closing = threading.RLock(), os.getpid(), False

    def __next__(self) -> Outputs:
        self._runtime._check_usable()  # before the lock, which a fork may have got from a thread that is not there
        try:
            with self._lock:
                self._runtime._check_usable()
                if self._closing:
                    self._outputs.close()
                return next(self._outputs)
        finally:
            if self._closing:
                self.close()

    def close(self) -> None:
        """End the stream and its threads. In the middle of a step, of this thread or another, they end after it: it may
        wait for a picture that never comes. A second call does nothing, nor does one in a forked process."""
        if self._process != os.getpid():
            return
        self._closing = True
        if self._lock.acquire(blocking=False):
            try:
                if inspect.getgeneratorstate(self._outputs) != inspect.GEN_RUNNING:
                    self._outputs.close()
            finally:
                self._lock.release()

    def __del__(self) -> None:
        if getattr(self, "_process", os.getpid()) != os.getpid():
            # What ends its threads would wait for locks that they may hold: in a fork it is never let go of.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._outputs))


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
