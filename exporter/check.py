"""Is a bundle still what it was proven to be, on every backend that is here? Each backend answers in a process of its own, so that one may crash."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Literal

from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, ResnetExportError
from runtimes.parity import Budget, ParityReport

Verdict = Literal["ok", "out of budget", "not here", "failed", "crashed"]


@dataclass(frozen=True)
class Checked:
    """What became of one backend.

    Attributes:
        reason: why it is not `ok`, in one line; empty where it is.
        report: what was measured; None where nothing was.
    """

    backend: str
    verdict: Verdict
    reason: str
    report: ParityReport | None
    seconds: float


def check_bundle(bundle: Bundle, backends: Sequence[str], *, budget: Budget | None = None) -> tuple[Checked, ...]:
    """Run the golden inputs on each backend, at the smallest, the middle and the largest batch.

    Args:
        budget: in place of the bundle's own.
    """
    if budget is not None:
        bundle = replace(bundle, manifest=replace(bundle.manifest, parity=replace(bundle.manifest.parity, budget=budget)))
    return tuple(_checked(bundle, backend) for backend in backends)


def _checked(bundle: Bundle, backend: str) -> Checked:
    context = multiprocessing.get_context("spawn")  # a fork would take CUDA and its locks along
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, bundle, backend), daemon=True)
    start = time.perf_counter()
    process.start()
    sending.close()
    try:
        verdict, reason, report = receiving.recv()
    except EOFError:
        process.join()
        verdict, reason, report = "crashed", _ending(process.exitcode), None
    finally:
        if process.is_alive():
            process.join(timeout=10)  # closing a runtime takes a moment
            process.kill()
        receiving.close()
    return Checked(backend, verdict, reason, report, round(time.perf_counter() - start, 3))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}; run it alone with --backend to see what it prints"
    return f"its process ended with exit code {code} and no answer; run it alone with --backend to see what it prints"


def _answer(connection: Connection, bundle: Bundle, backend: str) -> None:
    """In a process of its own."""
    from runtimes._open import backend_class, open_runtime
    from runtimes.golden import golden_report

    try:
        backend_class(backend).check_here()
        with open_runtime(bundle, backend) as model:
            report = golden_report(bundle, backend, model)
        violations = report.backends[backend].violations
        connection.send(("ok" if report else "out of budget", ", ".join(violations), report))
    except BackendUnavailable as error:
        connection.send(("not here", str(error), None))
    except ResnetExportError as error:
        connection.send(("failed", str(error), None))
