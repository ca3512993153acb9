"""Ask in a process of its own what only loading tells: a library may crash, print, hang, or take seconds to load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from runtimes.child import signal_name

START = "import sys; sys.path[:] = sys.argv[2:]; from runtimes.doctor.answers import main; main(sys.argv[1])"
"""Only what this Python imports from: `-c` alone would put the current folder first, with any file in it."""
TIMEOUT_S = 120.0
SHOWN = 300


@dataclass(frozen=True)
class Answer:
    """What a child answered: a value, or why there is none, in words that begin with `it`."""

    value: Any = None
    problem: str = ""


class Child:
    """A process that answers one question; the question is a list of words, the answer JSON on its stdout."""

    def __init__(self, question: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._problem, self._process = "", None
        command = [sys.executable, "-c", START, msgspec.json.encode(list(question)).decode(), *sys.path]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # what it starts itself ends with it, and holds no pipe open
            )
        except (OSError, ValueError, TypeError) as error:  # TypeError: a Python that does not know its file
            self._problem = f"it cannot be asked, for no process can be started: {error}"

    def answer(self, timeout_s: float = TIMEOUT_S) -> Answer:
        """Wait for the answer. A child that crashes, or takes longer than `timeout_s`, is a problem in words."""
        if self._process is None:
            return Answer(problem=self._problem)
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Answer(problem=f"it did not load within {timeout_s:g} s")
        finally:
            self.close()
        try:
            return Answer(msgspec.json.decode(out))
        except (ValueError, RecursionError):
            return Answer(problem=_end_of(self._process.returncode, err.decode("utf-8", "replace")))

    def close(self) -> None:
        """End it and what it has started, whatever they do. A child that has ended is left alone."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()


def _end_of(code: int, err: str) -> str:
    """How a child ended that did not answer, and the last line that it wrote."""
    said = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")[:SHOWN]
    how = f"it ended with exit code {code}"
    if name := signal_name(code):
        how = f"it crashed ({name})"
    return f"{how}{f': {said}' if said else ''}"
