"""Run work in a process of its own, so that a library that crashes does not take the caller along."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from runtimes.errors import BackendUnavailable, ResnetExportError

Verdict = Literal["ok", "out of budget", "undecided", "not here", "failed", "crashed"]
HOW_TO_SEE = "with --backend to see what it prints"


class Outcome(NamedTuple):
    """What came of the work.

    Attributes:
        reason: why there is no value; empty where there is one.
        value: what the work returned; None where it failed.
    """

    verdict: Verdict
    reason: str
    value: Any


def run_in_own_process(
    work: Callable[..., tuple[Verdict, Any]], *arguments: object, timeout_s: float | None = None
) -> Outcome:
    """Run `work(*arguments)` in a new interpreter.

    The verdict is the one that `work` returns; `not here` where it raises BackendUnavailable, `failed` where it raises
    another error of this package or takes longer than `timeout_s`, `crashed` where its process ends without an answer.

    Args:
        work: a function of a module, which the new interpreter imports. It imports the running script too, which
            therefore needs the usual `if __name__ == "__main__"`.
        timeout_s: None sets no limit: a backend may compile kernels for minutes.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take CUDA and its locks along
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    seconds = threading.TIMEOUT_MAX if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
    timer = threading.Timer(seconds, give_up)
    timer.start()
    verdict: Verdict
    try:
        # Not as the process's own arguments: one that dies before it has read them all is waited for without end.
        ours.send((work, arguments))
        verdict, reason, value = ours.recv()
    except (EOFError, OSError):  # it died before, or in the middle of, reading or answering
        process.join()
        verdict, reason, value = "crashed", _exit_text(process.exitcode), None
        if late.is_set():
            reason = f"no answer within {timeout_s:g} s; give a longer --timeout, or run it alone {HOW_TO_SEE}"
            verdict = "failed"
    finally:
        timer.cancel()
        if process.is_alive():
            process.join(timeout=10)  # closing a runtime takes a moment
            process.kill()
        ours.close()
    return Outcome(verdict, reason, value)


def _serve(connection: Connection) -> None:
    """In the new process: receive the work, do it, and send its outcome."""
    work, arguments = connection.recv()
    try:
        verdict, value = work(*arguments)
        connection.send((verdict, "", value))
    except BackendUnavailable as error:
        connection.send(("not here", str(error), None))
    except ResnetExportError as error:
        connection.send(("failed", str(error), None))


def _exit_text(code: int | None) -> str:
    """What a process ended with, in words."""
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}; run it alone {HOW_TO_SEE}"
    return f"its process ended with exit code {code} and no answer; run it alone {HOW_TO_SEE}"
