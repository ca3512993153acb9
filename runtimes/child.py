"""What every process that we start with multiprocessing needs: a start that may fail, an end with its parent, and words
for how it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from runtimes.errors import ResnetExportError


class Started(NamedTuple):
    """A process, and our end of its pipe."""

    process: SpawnProcess
    connection: Connection


def start_child(serve: Callable[[Connection], None]) -> Started:
    """Start a new interpreter that runs `serve(connection)`, a function of a module, and ends with this process. Not a
    fork, which would take CUDA and its locks along.

    Raises:
        ResnetExportError: none can be started; says why.
    """
    context = multiprocessing.get_context("spawn")
    try:
        ours, theirs = context.Pipe()
        try:
            process = context.Process(target=_serve_while_needed, args=(serve, theirs), daemon=True)
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
    except OSError as error:
        raise ResnetExportError(
            f"cannot start a process: {error.strerror or error}; end other programs, or allow this user more of them"
        ) from error
    return Started(process, ours)


def _serve_while_needed(serve: Callable[[Connection], None], connection: Connection) -> None:
    """In the new process. Ctrl-C goes to all processes of a terminal, and it is the parent that ends this one then; a
    parent that is killed ends nobody, so this process watches it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(connection)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def signal_name(code: int | None) -> str:
    """The signal that ended a process, by its exit code; empty where it ended by itself. Some signals have no name."""
    if code is None or code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def failure_text(error: OSError | MemoryError) -> str:
    """What the system refused, in one line."""
    if isinstance(error, MemoryError):
        return "the memory is full; end other programs, or take a smaller batch"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; see that the disk has room and is well, and give the command again"
