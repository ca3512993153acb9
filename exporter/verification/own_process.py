"""Work in a process of its own, so that a library that crashes takes nobody along."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

from runtimes.errors import BackendUnavailable, ResnetExportError

Verdict = Literal["ok", "out of budget", "not here", "failed", "crashed"]


def run_in_own_process(
    work: Callable[..., tuple[Verdict, Any]], *arguments: object, timeout_s: float | None = None
) -> tuple[Verdict, str, Any]:
    """What a function of a module gives for these arguments: a verdict, the reason where it has failed, and a value.

    It is imported by its name in a new interpreter, which imports the running script too: one that checks bundles needs the usual
    `if __name__ == "__main__"`. Without `timeout_s` it is waited for however long it takes: a backend may compile kernels for minutes.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take CUDA and its locks along
    ours, theirs = context.Pipe()
    process = context.Process(target=_working, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(
        threading.TIMEOUT_MAX if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX), give_up
    )
    timer.start()
    verdict: Verdict
    try:
        # Not as the process's own arguments: one that dies before it has read them all is waited for without end.
        ours.send((work, arguments))
        verdict, reason, value = ours.recv()
    except (EOFError, OSError):  # it died before, or in the middle of, reading or answering
        process.join()
        verdict, reason, value = "crashed", _ending(process.exitcode), None
        if late.is_set():
            verdict, reason = (
                "failed",
                f"no answer within {timeout_s:g} s; allow it more, or run it alone with --backend to see what it prints",
            )
    finally:
        timer.cancel()
        if process.is_alive():
            process.join(timeout=10)  # closing a runtime takes a moment
            process.kill()
        ours.close()
    return verdict, reason, value


def _working(connection: Connection) -> None:
    work, arguments = connection.recv()
    try:
        verdict, value = work(*arguments)
        connection.send((verdict, "", value))
    except BackendUnavailable as error:
        connection.send(("not here", str(error), None))
    except ResnetExportError as error:
        connection.send(("failed", str(error), None))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return (
            f"its process was ended by {signal.Signals(-code).name}; run it alone with --backend to see what it prints"
        )
    return f"its process ended with exit code {code} and no answer; run it alone with --backend to see what it prints"
