"""Run a command line in this process, as its script would, and keep what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Ran:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line a failing command says, checked to be one and no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert not self.out
        return lines[0]


def run_main(
    main: Callable[[], None],
    arguments: Sequence[object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ran:
    """Call a script's entry point with these arguments."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    code = left.value.code
    assert isinstance(code, int)
    return Ran(code, out, err)
