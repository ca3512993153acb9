"""Build in a process of its own: its memory is given back before the engine is proven, and a library that crashes, or
that Linux kills for want of memory, is one error here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from exporter.engines.builders import EngineBuild, Job
from runtimes.board.memory import GIB, MIB, MemoryUse, MemoryWatch
from runtimes.child import failure_text, signal_name, start_child
from runtimes.errors import BackendUnavailable, BuildError, ResnetExportError
from runtimes.progress import Progress

Build = Callable[[str, Job, Progress], EngineBuild]
"""`build(backend, job, on_step)`, a function of a module, which the new process imports."""


SMALLEST_WORKSPACE = 64 * MIB
"""What is advised at least; below that, kernels are left out that a ResNet needs to be fast."""


class _Failed(NamedTuple):
    """An error of ours, as its parts: not every exception can be rebuilt from its message alone."""

    kind: type[ResnetExportError]
    message: str


class ProcessEnded(BuildError):
    """The process of a build ended without an answer.

    Attributes:
        out_of_memory: it was killed by SIGKILL, as Linux does when memory runs out.
    """

    def __init__(self, message: str, *, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


def watched_build(
    build: Build, backend: str, job: Job, on_step: Progress, *, own_process: bool
) -> tuple[EngineBuild, MemoryUse | None]:
    """Run `build(backend, job, on_step)`, here or in a process of its own, and tell what memory that took.

    Raises:
        BuildError: its process crashed or was killed; with what to do.
        ResnetExportError: as `build`.
    """
    with MemoryWatch() as watch:
        try:
            done = build_apart(build, backend, job, on_step) if own_process else build(backend, job, on_step)
        except ProcessEnded as error:
            raise BuildError(_explained(error, job, watch.use)) from error
    use = watch.use
    return done, None if use is None else replace(use, workspace_bytes=job.options.workspace_bytes)


def _explained(error: ProcessEnded, job: Job, use: MemoryUse | None) -> str:
    if not error.out_of_memory:
        return f"{error} and no engine; build again with --in-process to look into it"
    least = ""
    if use is not None:
        least = f" ({use.available_bytes / GIB:.1f} GiB were available, {use.lowest_bytes / GIB:.1f} at the least)"
    given = job.options.workspace_bytes or SMALLEST_WORKSPACE * 2
    workspace = max(given // 2, SMALLEST_WORKSPACE) // MIB
    return (
        f"{error}, as Linux does when memory runs out{least}; end other programs, allow kernels less with --workspace "
        f"{workspace}, add swap, or export with a smaller largest batch"
    )


def build_apart(build: Build, backend: str, job: Job, on_step: Progress) -> EngineBuild:
    """Run `build(backend, job, on_step)` in a new interpreter that ends with it. An interruption ends it, too.

    Raises:
        ProcessEnded: it crashed or was killed.
        ResnetExportError: as `build`; or no process can be started.
    """
    process, ours = start_child(_serve)
    try:
        for said in _answers(ours, (build, backend, job)):
            if isinstance(said, EngineBuild):
                return said
            if isinstance(said, _Failed):
                raise _rebuilt(said)
            on_step(*said)
        process.join()
        raise _ended(process.exitcode)
    finally:
        process.kill()
        process.join()
        ours.close()


def check_loads(load: Callable[[str], object], backend: str) -> None:
    """Run `load(backend)` in a new interpreter that ends with it: a library that crashes there would crash here, too.
    What it raises there is left to the caller, who meets it as well.

    Raises:
        BackendUnavailable: the process crashed, or ended by itself.
        ResnetExportError: none can be started.
    """
    process, ours = start_child(_load)
    try:
        with suppress(OSError):
            ours.send((load, backend))
        process.join()
        code = process.exitcode
    finally:
        process.kill()
        process.join()
        ours.close()
    if code:
        name = signal_name(code)
        how = f"crashes ({name})" if name else f"ends with exit code {code}"
        raise BackendUnavailable(
            f"{backend} {how} when it is loaded; see what is wrong with: resnet-deploy doctor --backend {backend}"
        )


def _load(connection: Connection) -> None:
    load, backend = connection.recv()
    with suppress(Exception):
        load(backend)


def _answers(connection: Connection, work: object) -> Iterator[Any]:
    """All that the process says, until it has ended."""
    with suppress(EOFError, OSError):
        # Not as the process's own arguments: one that dies before it has read them all is waited for without end.
        connection.send(work)
    while True:
        try:
            said = connection.recv()
        except (EOFError, OSError):
            return
        yield said


def _rebuilt(failed: _Failed) -> ResnetExportError:
    error = failed.kind.__new__(failed.kind)
    error.args = (failed.message,)
    return error


def _ended(code: int | None) -> ProcessEnded:
    name = signal_name(code)
    how = f"was ended by {name}" if name else f"ended with exit code {code}"
    return ProcessEnded(f"the build's own process {how}", out_of_memory=name == "SIGKILL")


def _serve(connection: Connection) -> None:
    """In the new process: build, and send each step and at last the engine, or why there is none."""
    build, backend, job = connection.recv()
    lock = threading.Lock()  # a builder may report from several threads

    def on_step(step: str, done: int = 0, total: int = 0) -> None:
        with lock:
            connection.send((step, done, total))

    answer: Any
    try:
        answer = build(backend, job, on_step)
    except ResnetExportError as error:
        answer = _Failed(type(error), str(error))
    except (OSError, MemoryError) as error:
        answer = _Failed(BuildError, failure_text(error))
    connection.send(answer)
