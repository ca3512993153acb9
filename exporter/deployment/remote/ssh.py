"""Talk to another machine over ssh and scp as the system has them: run a command there, put a folder, get a file.

Keys, passwords, known hosts and jump hosts are ssh's affair, and its configuration is read. All goes through one
connection, so that a password is asked for once. The command that keeps it open makes a temporary folder there, and
waits for its input to end: when we close it, are killed, or the network fails, it ends what still runs in the folder,
and removes it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from exporter.deployment.remote.address import Address
from runtimes.errors import BackendUnavailable, BoardError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

CONNECT_TIMEOUT_S, CLOSE_TIMEOUT_S = 20, 30
SSH_FAILED = 255
MARK = "resnet-deploy:"
"""Precedes what we want to read: a login shell's start-up files may print, too."""
FOLDER = re.compile(r"/[\w./-]+", re.ASCII)
HOLD = (
    'end() { if p=$(cat "$d/pid") && test -n "$p" && kill -s TERM -- "-$p"; then n=0; '
    'while kill -s 0 -- "-$p" && test $n -lt 10; do sleep 1; n=$((n + 1)); done; kill -s KILL -- "-$p"; '
    'fi 2>/dev/null; rm -rf -- "$d"; }; '
    'umask 077; d=$(mktemp -d "${TMPDIR:-/var/tmp}/resnet-deploy.XXXXXXXXXX") || exit 1; '
    'trap "exit 0" HUP INT TERM PIPE; trap end EXIT; '
    f'echo "{MARK}$d"; cat >/dev/null'
)
"""For sh: makes the folder, and removes it when standard input ends; before that it ends the process group in `pid`, by
force after 10 s. Not in /tmp, which is memory on some systems."""
RUN = (
    "echo {mark}; cd {folder} || exit 1; setsid {command} & echo $! >pid || kill -s TERM -- -$!; "
    "wait $!; s=$?; rm -f pid; exit $s"
)
"""Runs a command in the folder, in a process group of its own, and ends with its exit code."""
REMEDIES = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one that ssh knows: if the board was installed "
    "anew, forget the old key with ssh-keygen -R, else another machine answers",
    "Host key verification failed": "ssh does not know its host key: connect by hand with ssh once, and compare it",
    "Permission denied": "connect by hand with ssh to see which user and key it takes",
    "Could not resolve hostname": "give its address, or a Host of ssh's configuration",
    "refused": "see that sshd runs there, and on which port",
    "timed out": "see that it is switched on, and on this network",
}
"""What ssh says, and what to do about it; the first that fits."""


class Answer(NamedTuple):
    """What a command on the board ended with: its exit code, and its standard output."""

    code: int
    out: str


class Ssh:
    """A connection to a board, and a temporary folder there which lasts as long as it.

    Args:
        config: file that ssh reads in place of its own configuration.
        quiet: show no progress of copies.

    Raises:
        BackendUnavailable: ssh or scp is not here, or does not reach the board; says why.
        BoardError: the board has no place for the folder.
    """

    def __init__(self, board: Address, config: Path | None = None, *, quiet: bool = False) -> None:
        self.board = board
        missing = [name for name in ("ssh", "scp") if shutil.which(name) is None]
        if missing:
            raise BackendUnavailable(f"--on needs {' and '.join(missing)}, not found here; install OpenSSH's client")
        self._config, self._quiet = config, quiet
        self._sockets = tempfile.mkdtemp(prefix="resnet-deploy-", dir="/tmp")  # a socket's path must be short
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        # Ctrl-C goes to every process of the terminal. This one has still to remove the folder.
        ignoring = ("/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh")
        self._holder = subprocess.Popen(
            [*ignoring, *self._ssh("ControlMaster=yes"), in_sh(HOLD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        try:
            self.folder = self._made_folder()
        except BaseException:
            self._holder.terminate()  # it may be connecting still, which nobody wants to wait for
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs in the folder, remove it, and disconnect."""
        try:
            if self._holder.stdin is not None:
                self._holder.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # the network is gone, and the board will notice that, too
                self._holder.wait(CLOSE_TIMEOUT_S)
        finally:
            self._holder.kill()
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._said.close()
            shutil.rmtree(self._sockets, ignore_errors=True)

    def run(self, command: Sequence[str], on_line: Callable[[str], None]) -> Answer:
        """Run a command in the folder; `on_line` gets each line of its standard error as it comes.

        Raises:
            BackendUnavailable: the connection was lost, or takes no further command.
        """
        script = RUN.format(mark=MARK, folder=shlex.quote(self.folder), command=quoted(command))
        with tempfile.TemporaryFile() as out:
            with subprocess.Popen(
                [*self._ssh("ControlMaster=no", "ProxyCommand=false"), in_sh(script)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            ) as process:
                try:
                    for line in process.stderr or ():
                        on_line(line.rstrip("\r\n"))
                except BaseException:
                    process.kill()
                    raise
            out.seek(0)
            answer = out.read().decode(errors="replace").partition(f"{MARK}\n")[2]
        if process.returncode == SSH_FAILED:
            raise self._broken()
        return Answer(process.returncode, answer)

    def put(self, local: Path, name: str) -> None:
        """Copy a folder, following links, to `name` in the board's folder. Raises as `_copy`."""
        self._copy(str(local.absolute()), self._there(name), "-r")

    def get(self, name: str, local: Path) -> None:
        """Copy the file `name` of the board's folder, which must need no quotes, to here. Raises as `_copy`."""
        self._copy(self._there(name), str(local.absolute()))

    def _copy(self, source: str, destination: str, *flags: str) -> None:
        """
        Raises:
            BackendUnavailable: the connection was lost.
            BoardError: scp failed, and says why.
        """
        shown = not self._quiet and os.isatty(2)  # scp draws its progress if its standard output is a terminal
        words = ["scp", *flags, *([] if shown else ["-q"]), *self._options("ControlMaster=no", "ProxyCommand=false")]
        with tempfile.TemporaryFile() as said:
            stdout = 2 if shown else subprocess.DEVNULL
            code = subprocess.run(
                [*words, "--", source, destination], stdin=subprocess.DEVNULL, stdout=stdout, stderr=said, check=False
            ).returncode
            why = last_line(said) or f"scp ended with exit code {code}"
        if code:
            if self._is_lost():
                raise self._broken()
            raise BoardError(f"cannot copy to or from {self.board.text}: {why}; copy again, or free some room")

    def _there(self, name: str) -> str:
        """A path in the board's folder, for scp; absolute paths, as those of local files, are never taken for hosts."""
        host = f"[{self.board.host}]" if ":" in self.board.host else self.board.host
        return f"{host}:{self.folder}/{name}"

    def _ssh(self, *options: str) -> list[str]:
        return ["ssh", "-T", "-x", "-a", *self._options(*options), "--", self.board.host]

    def _options(self, *options: str) -> list[str]:
        """What ssh and scp both take. Once the connection stands, `ProxyCommand=false` keeps them from making another
        one when it is lost."""
        given = [
            *options,
            f"ControlPath={self._sockets}/s",
            "ControlPersist=no",
            "ClearAllForwardings=yes",
            "RemoteCommand=none",
            f"ConnectTimeout={CONNECT_TIMEOUT_S}",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        if not os.isatty(0):
            given.append("BatchMode=yes")  # nobody is there to be asked
        if self.board.user is not None:
            given.append(f"User={self.board.user}")
        if self.board.port is not None:
            given.append(f"Port={self.board.port}")
        config = ["-F", str(self._config.absolute())] if self._config is not None else []
        return [*config, *(word for one in given for word in ("-o", one))]

    def _made_folder(self) -> str:
        """Wait until the connection stands, and read which folder was made."""
        last = ""
        for line in self._holder.stdout or ():
            last = line.decode(errors="replace").strip() or last
            if last.startswith(MARK):
                folder = last.removeprefix(MARK)
                if FOLDER.fullmatch(folder):
                    return folder
                raise BoardError(f"expected a plain path as TMPDIR on {self.board.text}, got {folder!r}; set another")
        code = self._holder.wait()
        if code != SSH_FAILED:
            why = last_line(self._said) or last or f"exit code {code}"
            raise BoardError(
                f"cannot make a temporary folder on {self.board.text}: {why}; free some room there, or set TMPDIR"
            )
        self._said.seek(0)
        text = self._said.read().decode(errors="replace")
        remedy = next(
            (remedy for said, remedy in REMEDIES.items() if said in text), "connect by hand with ssh to see why"
        )
        raise BackendUnavailable(
            f"ssh does not reach {self.board.text}: {last_line(self._said) or 'it says no more'}; {remedy}"
        )

    def _is_lost(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._holder.wait(1)  # it may notice a moment after the others
        return self._holder.poll() is not None

    def _broken(self) -> BackendUnavailable:
        board = self.board.text
        if not self._is_lost():
            return BackendUnavailable(f"sshd on {board} takes no second command on a connection; raise its MaxSessions")
        return BackendUnavailable(
            f"the connection to {board} was lost; nothing was brought back, and the temporary folder there goes once "
            "the board notices that; build again"
        )


def in_sh(script: str) -> str:
    """A script of one line for POSIX sh, as a command for any login shell, be it fish or csh."""
    return f"exec sh -c {shlex.quote(script)}"


def quoted(command: Sequence[str]) -> str:
    """The words for sh; a leading ~/ of the program is the home folder there."""
    program = command[0]
    first = f'"$HOME"/{shlex.quote(program[2:])}' if program.startswith("~/") else shlex.quote(program)
    return " ".join([first, *map(shlex.quote, command[1:])])


def last_line(file: IO[bytes]) -> str:
    """The last line of what a program said, without blank ones."""
    file.seek(0)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line.rstrip(".") for line in reversed(lines) if line), "")
