"""One interface over every backend: open, run, close."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, final
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BackendUnavailable, BadInput, UnknownName
from runtimes.kernels import KernelCount
from runtimes.specs import BatchRange, TensorSpec, check_feeds, declared_batch, with_free_batch
from runtimes.tuning import DEFAULT_TUNING, Tuning
from runtimes.turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on; JetPack 6 has 3.10

    from runtimes.bundle import Bundle
    from runtimes.choice import Choice
    from runtimes.manifest import Manifest
    from runtimes.preprocess import Preprocess
    from runtimes.stream import AnyPicture, OutputStream


class Runtime(ABC):
    """A loaded model that can be run, until it is closed. Each backend is a subclass.

    Inputs are checked here, once for every backend. A batch above the range is split; one below it is padded, and its
    outputs are trimmed. The arrays that `run` returns belong to the caller: no later call changes them. Threads may
    share an instance: they take turns, so that one runs it at a time (see `TOGETHER`, and `sibling` for threads that
    run side by side). Only the process that opened it can use it.
    """

    FILE: ClassVar[str]
    """The file of a bundle that this backend runs."""
    tuning: Tuning = DEFAULT_TUNING
    """How it was opened."""
    preprocess: Preprocess | None = None
    """The preprocessing of the bundle that it was opened from; None for a single model file."""
    choice: Choice | None = None
    """How `auto` came to this backend; None where it was named."""
    TOGETHER: ClassVar[bool] = False
    """May several threads be in `_run` at a time? Otherwise they take turns."""
    VARIANTS: ClassVar[tuple[str, ...]] = ()
    """Other ways to run the model, faster or less exact, that a benchmark measures too: names that `use` takes."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: BatchRange | None) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batch = batch if batch is not None else declared_batch(inputs)
        self._fed = tuple(with_free_batch(spec) for spec in inputs)
        self._turns = Turns(together=self.TOGETHER)
        self._streams: WeakSet[OutputStream] = WeakSet()
        self._process = os.getpid()

    @classmethod
    @abstractmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> Self:
        """Load the model file at `path` onto `provider` (None: the backend's default, always the CPU where it has one).

        Raises:
            BackendUnavailable: the provider is not here, or not the one that would run.
            BadInput: the file is not a model of this backend.
        """

    @classmethod
    def file_of(cls, bundle: Bundle, trusted: Collection[str] = ()) -> Path:
        """The path of the bundle's file that this backend opens; `trusted` as in `open_model`.

        Raises:
            BackendUnavailable: the bundle does not have it, or none for this machine.
        """
        if cls.FILE not in bundle.manifest.files:
            raise BackendUnavailable(
                f"{bundle.folder} has no {cls.FILE}, which this backend runs; export the bundle again, with nothing "
                "left out"
            )
        return bundle.file(cls.FILE)

    @classmethod
    def open_url(cls, url: str, *, batch: BatchRange | None = None) -> Self:
        """Open a model that a server runs, where the backend is a client of such servers.

        Raises:
            BadInput: the backend runs files, or the URL is none of a model.
            BackendUnavailable: the server or the model is not there, or does not answer in time.
            ResnetExportError: the server refuses to tell what the model takes and gives.
        """
        raise BadInput(
            "expected a bundle or a model file for this backend, got a URL; those are for the backend triton"
        )

    @classmethod
    def open_model(
        cls,
        model: Path | Bundle,
        *,
        provider: str | None = None,
        trusted: Collection[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> Self:
        """Open what `open_runtime` was given: a model file, or this backend's file of a bundle.

        `trusted` names engines, by sha256, that may be loaded though this machine did not build them; other backends
        ignore it. Raises as `open`, `file_of` and `check_bundle` do.
        """
        if isinstance(model, Path):
            return cls.open(model, provider=provider, tuning=tuning)
        cls.check_bundle(model.manifest, provider)
        return cls.open(cls.file_of(model), provider=provider, batch=model.manifest.batch, tuning=tuning)

    @classmethod  # noqa: B027  (not abstract: a package that can be imported is mostly all that is needed)
    def check_here(cls) -> None:
        """Check that this machine can run the backend at all.

        Raises:
            BackendUnavailable: it cannot: a driver is missing, for example.
        """

    @classmethod
    def providers(cls) -> tuple[str, ...]:
        """The providers that may be here, where a backend has several; empty where it has one."""
        return ()

    @classmethod  # noqa: B027  (not abstract: most backends run every bundle)
    def check_bundle(cls, manifest: Manifest, provider: str | None) -> None:
        """Check, before a bundle's file is opened, that the installed version of this backend runs it rightly.

        Raises:
            BackendUnavailable: it does not; says why, and what would run it.
        """

    @property
    @abstractmethod
    def provider(self) -> str:
        """Where the model runs, for example `cpu` or `cuda`."""

    @property
    def details(self) -> dict[str, str]:
        """What else is to be known about how it runs, in words by name, for example `precision`: `bf16, as the budget
        allows`. Empty where there is nothing to say."""
        return {}

    def kernels(self) -> KernelCount | None:
        """How many convolutions and additions run on integers; None where the backend does not tell."""
        return None

    def use(self, variant: str) -> None:
        """Run as one of `VARIANTS` from now on.

        Raises:
            BackendUnavailable: this machine cannot.
            UnknownName: there is no such variant.
        """
        raise UnknownName("variant", variant, self.VARIANTS)

    @abstractmethod
    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch of checked, contiguous inputs, of a size within the range; returns new arrays."""

    def _prepared(self, feeds: dict[str, NDArray[Any]]) -> Callable[[], None]:
        """A call that runs these checked, contiguous inputs, of a size within the range. A backend whose device has
        memory of its own copies them there once."""

        def call() -> None:
            self._run(feeds)

        return call

    @abstractmethod
    def _close(self) -> None:
        """Free the model."""

    @final
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model: outputs by name for inputs by name, rows in the order given.

        Raises:
            BadInput: names, dtypes or shapes are not the model's.
            BackendUnavailable: another process opened it, of which this one is a fork.
            ValueError: the runtime is closed.
        """
        self._check_usable()
        count = check_feeds(self._fed, feeds)
        contiguous = _contiguous(feeds)
        return self._turns.take(lambda: self._run_in_range(contiguous, count))

    @final
    def prepared(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """A call that computes the outputs for one batch, whose inputs are copied to the device now, once: for
        measuring what the device alone takes.

        The call returns when the outputs are computed; they stay on the device, and nobody reads them. It works until
        the runtime is closed, whatever is run in between.

        Raises:
            BadInput: as `run`, or the batch is outside of the range: it is neither split nor padded.
            BackendUnavailable, ValueError: as `run`.
        """
        self._check_usable()
        count = check_feeds(self._fed, feeds)
        if self.batch is not None and not self.batch.min <= count <= self.batch.max:
            raise BadInput(f"expected a batch from {self.batch.min} to {self.batch.max}, got {count}")
        contiguous = _contiguous(feeds)
        call = self._turns.take(lambda: self._prepared(contiguous))

        def checked() -> None:
            self._check_usable()
            self._turns.take(call)

        return checked

    @final
    def stream(
        self, pictures: Iterable[AnyPicture], preprocess: Preprocess | None = None, *, batch: int | None = None
    ) -> OutputStream:
        """Run the model over pictures: the outputs by name of one batch after another, in the pictures' order.

        Pictures are read and preprocessed in threads while the model runs, in bounded memory: two batches, and one
        picture for each thread, are ready or on their way. The last batch may be smaller. Of pictures that a model
        takes in any size, neighbours of equal size share a batch.

        Args:
            pictures: paths, pictures that Pillow opened, or arrays of uint8 (height, width, channels).
            preprocess: None takes `self.preprocess`.
            batch: how many pictures to run at once. None takes what the model is tuned for, up to 32; one where
                pictures come in any size.

        Raises:
            BadInput: the model has no preprocessing and none is given, or takes more than pictures; `batch` is no
                number of pictures. While it is iterated over, after the outputs of what came before: a picture cannot
                be read, or is not for this model (named).
            BackendUnavailable, ValueError: as `run`.
        """
        from runtimes.stream import open_stream

        self._check_usable()
        found = open_stream(self, pictures, self.preprocess if preprocess is None else preprocess, batch)
        with self._turns.lock:
            self._streams.add(found)
        return found

    @final
    def sibling(self) -> Self:
        """Another runtime of the same model, opened as this one: for another thread to run beside it.

        It has its own memory for inputs and outputs, and shares the weights wherever its library can. Each is closed
        for itself.

        Raises:
            BackendUnavailable: the backend has none; or as `run`.
            ValueError: as `run`.
        """
        self._check_usable()
        found = self._turns.take(self._sibling)
        found.tuning, found.preprocess, found.choice = self.tuning, self.preprocess, self.choice
        return found

    def _sibling(self) -> Self:
        raise BackendUnavailable(
            f"expected a backend whose runtimes share a model, got {type(self).__name__}; open the model again for "
            "another thread"
        )

    def _run_each(self, batches: Iterator[dict[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run one batch after another, each of any number of rows, and yield the outputs in order.

        A backend that can run several at a time overrides it. The next of `batches` waits while pictures are read, and
        raises what the caller's own iterator of pictures raises.
        """
        return map(self.run, batches)

    @final
    def _check_usable(self) -> None:
        """Check that the model can be run.

        Raises:
            BackendUnavailable: another process opened it, of which this one is a fork.
            ValueError: the runtime is closed.
        """
        self._turns.check()
        if self._process != os.getpid():
            # A backend's threads stay behind: PyTorch waits for its own without end, and CUDA's state is the other
            # process's (pytorch#49555).
            raise BackendUnavailable(
                f"expected a model that process {os.getpid()} opened, got one of process {self._process}, which "
                "forked; open it after the fork, or start processes with multiprocessing's 'spawn'"
            )

    @final
    def _run_in_range(self, feeds: dict[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
        if self.batch is None or self.batch.min <= count <= self.batch.max:
            return self._run(feeds)
        parts = [self._run_rows(feeds, start, stop, self.batch.min) for start, stop in self.batch.chunks(count)]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    @final
    def _run_rows(self, feeds: dict[str, NDArray[Any]], start: int, stop: int, least: int) -> dict[str, NDArray[Any]]:
        rows = {name: array[start:stop] for name, array in feeds.items()}
        missing = least - (stop - start)
        if missing <= 0:
            return self._run(rows)
        padded = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in rows.items()}
        return {name: array[: stop - start].copy() for name, array in self._run(padded).items()}

    @final
    def close(self) -> None:
        """Free the model, and end its streams, once no other thread is in the middle of a run.

        A second call does nothing, nor does one in a forked process: the model belongs to its parent. Where the handler
        of a signal calls it in the middle of this thread's own run, the model is freed when that run ends.
        """
        if self._process == os.getpid():
            self._turns.end(self._free)
        else:
            self._turns.ended = True

    def _free(self) -> None:
        for stream in list(self._streams):  # none comes any more
            stream.close()
        self._close()

    @final
    def __del__(self) -> None:
        if getattr(self, "_process", os.getpid()) != os.getpid():
            # A fork's end would wait for the threads that the backend's objects left behind, without end: they are
            # never let go of there.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.__dict__))

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _contiguous(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays as one run of memory in this machine's byte order: backends read raw memory."""
    return {name: _plain(array) for name, array in feeds.items()}


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if type(array) is np.ndarray and array.flags.c_contiguous and array.dtype.isnative:
        return array  # most are, and to ask numpy for one takes longer
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
