"""Run work in a process of its own, so that a library that crashes does not take the caller along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from runtimes.child import failure_text, signal_name, start_child
from runtimes.errors import BackendUnavailable, PlanError, ResnetExportError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on; JetPack 6 has 3.10

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


def check_timeout(timeout_s: float | None) -> None:
    """Refuse a timeout that leaves no time.

    Raises:
        PlanError: it is not above 0.
    """
    if timeout_s is not None and not timeout_s > 0:  # nan too
        raise PlanError(f"expected a timeout of more than 0 seconds, got {timeout_s:g}; leave it out for none")


class OwnProcess:
    """A new interpreter, which does one piece of work after another until it is closed.

    Args:
        timeout_s: how long each piece may take; None sets no limit: a backend may compile kernels for minutes.

    Raises:
        ResnetExportError: no process can be started.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self._process, self._ours = start_child(_serve)

    def ask(self, work: Callable[..., tuple[Verdict, Any]] | str, *arguments: object) -> Outcome:
        """Run `work(*arguments)` there, and wait for it.

        The verdict is the one that `work` returns; `not here` where it raises BackendUnavailable, `failed` where it
        raises another error of this package or takes longer than the timeout, `crashed` where the process ends without
        an answer, after which it answers nothing more.

        Args:
            work: a function of a module, which the new interpreter imports. It imports the running script too, which
                therefore needs the usual `if __name__ == "__main__"`. Or the name of a method of what `keep` made.
        """
        return self._exchange(work, arguments)

    def keep(self, make: type, *arguments: object) -> Outcome:
        """Make `make(*arguments)` there, which stays there, for `ask` to call its methods by their names. These return
        any value, and whatever they raise is a failure: the process lives on."""
        return self._exchange(make, arguments)

    def _exchange(self, work: object, arguments: tuple[object, ...]) -> Outcome:
        late, timeout_s = threading.Event(), self._timeout_s

        def give_up() -> None:
            late.set()
            self._process.kill()

        seconds = threading.TIMEOUT_MAX if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            # Not as the process's own arguments: one that dies before it has read them all is waited for without end.
            self._ours.send((work, arguments))
            return Outcome(*self._ours.recv())
        except (EOFError, OSError):  # it died before, or in the middle of, reading or answering
            self._process.join()
            if late.is_set():
                reason = f"no answer within {timeout_s:g} s; give a longer --timeout, or run it alone {HOW_TO_SEE}"
                return Outcome("failed", reason, None)
            return Outcome("crashed", _exit_text(self._process.exitcode), None)
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._ours.close()  # nothing more is asked of it
        self._process.join(timeout=10)  # closing a runtime takes a moment
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_in_own_process(
    work: Callable[..., tuple[Verdict, Any]], *arguments: object, timeout_s: float | None = None
) -> Outcome:
    """Run `work(*arguments)` in a new interpreter that ends with it: see `OwnProcess.ask`."""
    with OwnProcess(timeout_s) as process:
        return process.ask(work, *arguments)


def run_here(work: Callable[..., tuple[Verdict, Any]], *arguments: object) -> Outcome:
    """Run `work(*arguments)` in this process: the same outcome, but for a crash, which ends it."""
    try:
        verdict, value = work(*arguments)
    except BackendUnavailable as error:
        return Outcome("not here", str(error), None)
    except ResnetExportError as error:
        return Outcome("failed", str(error), None)
    return Outcome(verdict, "", value)


def _serve(connection: Connection) -> None:
    """In the new process: receive work, do it, and send its outcome, again and again."""
    kept: object = None
    while True:
        try:
            work, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if isinstance(work, type):
                kept = work(*arguments)
                connection.send(("ok", "", None))
            elif isinstance(work, str):
                connection.send(("ok", "", _called(kept, work, arguments)))
            else:
                connection.send(run_here(work, *arguments))
        except BackendUnavailable as error:
            connection.send(("not here", str(error), None))
        except ResnetExportError as error:
            connection.send(("failed", str(error), None))
        except (OSError, MemoryError) as error:
            connection.send(("failed", failure_text(error), None))


def _called(kept: object, name: str, arguments: tuple[object, ...]) -> Any:
    """Call a method of what is kept.

    Raises:
        ResnetExportError: in place of whatever a library raises.
    """
    try:
        return getattr(kept, name)(*arguments)
    except ResnetExportError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise ResnetExportError(f"{type(error).__name__}: {said[0] if said else 'it says no more'}") from error


def _exit_text(code: int | None) -> str:
    """What a process ended with, in words."""
    if name := signal_name(code):
        return f"its process was ended by {name}; run it alone {HOW_TO_SEE}"
    return f"its process ended with exit code {code} and no answer; run it alone {HOW_TO_SEE}"
