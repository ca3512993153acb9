"""Is a board fit for a build? Looked at over ssh before anything is copied."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from exporter.deployment.remote.ssh import Ssh
from runtimes.errors import BackendUnavailable, PlanError

COMMANDS = (("resnet-deploy",), ("~/resnet/bin/resnet-deploy",))
"""Where the board's own install is looked for: on the path, and where docs/jetson.md puts it."""
MACHINES, DLA_MACHINE = ("Linux x86_64", "Linux aarch64"), "Linux aarch64"
NOT_FOUND = (126, 127)
SLACK_BYTES = 64 << 20
DF = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s")
"""A line of `df -P`: blocks, used, available, capacity."""
VERSION = re.compile(r"version ((\d+\.\d+)\S*)")


def check_machine(ssh: Ssh, bundle_bytes: int, *, needs_dla: bool) -> None:
    """Check the board's architecture, and that a bundle of this size and its engine have room.

    Raises:
        BackendUnavailable: they have none, or engines cannot be built there.
        PlanError: DLA was asked for, and the board has none.
    """
    board, said = ssh.board.text, list[str]()
    seen = ssh.run(("sh", "-c", "uname -sm; df -Pk ."), said.append).out
    machine, _, disk = seen.partition("\n")
    if machine not in MACHINES:
        raise BackendUnavailable(f"expected {' or '.join(MACHINES)}, got {machine!r} on {board}; name another")
    if needs_dla and machine != DLA_MACHINE:
        raise PlanError(f"expected a Jetson for --dla, got {machine} on {board}; leave --dla out, or name a Jetson")
    free, needed = DF.search(disk), 2 * bundle_bytes + SLACK_BYTES
    if free is not None and int(free[1]) << 10 < needed:
        raise BackendUnavailable(
            f"expected {needed / 1e6:.0f} MB of free disk on {board} for the bundle and its engine, got "
            f"{(int(free[1]) << 10) / 1e6:.0f} MB in {Path(ssh.folder).parent}; free some room, or set TMPDIR there"
        )


def find_install(ssh: Ssh, command: tuple[str, ...]) -> tuple[str, ...]:
    """The words that run the board's `resnet-deploy`: `command`, or if that is empty the first of `COMMANDS`.

    Raises:
        BackendUnavailable: there is none, it does not run, or its version is not ours (the first two numbers).
    """
    ours, board = importlib.metadata.version("resnet-export"), ssh.board.text
    places = [command] if command else COMMANDS
    for words in places:
        lines: list[str] = []
        answer = ssh.run((*words, "--version"), lines.append)
        if answer.code in NOT_FOUND:
            continue
        found = VERSION.search(answer.out)
        if answer.code or found is None:
            said = next((line for line in reversed(lines) if line.strip()), answer.out.strip())
            raise BackendUnavailable(
                f"expected a version from {' '.join(words)} --version on {board}, got exit code {answer.code}: {said}; "
                "install it there again, or name another with --remote-command"
            )
        if found[2] != ".".join(ours.split(".")[:2]):
            raise BackendUnavailable(
                f"expected resnet-deploy {ours} on {board}, as here, got {found[1]}; install the same version on both"
            )
        return words
    wanted = " or ".join(map(" ".join, places))
    raise BackendUnavailable(
        f"expected {wanted} on {board}, got none (its PATH is short over ssh); install it there, or name it: "
        "--remote-command '~/venv/bin/resnet-deploy'"
    )
