"""What a command shows of its steps: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
from exporter.cli._common import status
with status(quiet=False) as progress:
    progress("weights")
    progress("calibrate", 3, 512)
    progress("left out: [b]one[/b].png")
    progress("simplify")
    progress("prove", 40, 100)
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(*command: str, **surroundings: str) -> str:
    """What a command writes to stderr where that is a terminal of 100 columns; it has to end well."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**kept, "TERM": "xterm", "COLUMNS": "100", **surroundings},
    )
    os.close(follower)
    written = b""
    while True:
        try:
            some = os.read(leader, 4096)
        except OSError:  # how Linux ends what nobody writes to any more
            break
        if not some:
            break
        written += some
    os.close(leader)
    assert process.wait() == 0, written
    return written.decode()


def states_of(written: str) -> list[str]:
    """The states of the live line, one after the other, as a reader sees them."""
    states = [CONTROL.sub("", state).strip() for state in re.split(r"\x1b\[2K|\n", written)]
    return [state for state in states if state]


def test_a_terminal_shows_one_line_with_a_bar_only_where_there_is_a_count() -> None:
    states = states_of(on_a_terminal(sys.executable, "-c", STEPS))
    of_step = {
        name: [one for one in states if f" {name} " in one] for name in ("weights", "calibrate", "simplify", "prove")
    }
    assert all(of_step.values()), states
    for name, count in (("calibrate", "3/512"), ("prove", "40/100")):
        assert all("━" in one and count in one for one in of_step[name]), of_step[name]
    for name in ("weights", "simplify"):
        assert not any("━" in one or "/" in one for one in of_step[name]), of_step[name]
    assert states.count("left out: [b]one[/b].png") == 1
    assert all(len(one) <= 100 for one in states)


def test_no_color_leaves_the_live_line_without_colours() -> None:
    assert COLOUR.search(on_a_terminal(sys.executable, "-c", STEPS))
    plain = on_a_terminal(sys.executable, "-c", STEPS, NO_COLOR="1")
    assert "3/512" in plain
    assert not re.search(r"\x1b\[(3|4|9)[0-9;]*m", plain)


def test_a_terminal_that_cannot_move_its_cursor_is_given_plain_lines() -> None:
    written = on_a_terminal(sys.executable, "-c", STEPS, TERM="dumb")
    assert written.splitlines() == ["weights", "left out: [b]one[/b].png", "simplify"]


@pytest.mark.parametrize("surroundings", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "FORCE_COLOR"])
def test_a_log_gets_a_line_for_each_step(surroundings: dict[str, str]) -> None:
    env = {**os.environ, **surroundings}
    done = subprocess.run([sys.executable, "-c", STEPS], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["weights", "left out: [b]one[/b].png", "simplify"]


def test_an_evaluation_counts_its_images_on_a_terminal(exported: Path) -> None:
    command = str(Path(sys.executable).with_name("resnet-deploy"))
    states = states_of(on_a_terminal(command, "eval", str(exported), "--data", "built-in", "--images", "100"))
    assert any("━" in one and re.search(r"evaluate .* \d+/100", one) for one in states), states
    assert not any("━" in one or "/" in one for one in states if "read the bundle" in one)
