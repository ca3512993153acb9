"""A real sshd on this machine's loopback address, which stands for a board: for tests of what goes over ssh.

It runs as whoever runs the tests, with host key, configuration and home folder of its own. A test puts programs into
the folder `bin`, which comes first on the board's path, and finds in `temporary` what is left there.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SEPARATION = Path("/run/sshd")
"""Folder that root's sshd wants to be there."""
SERVER = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
SetEnv PATH={folder}/bin:/usr/bin:/bin HOME={folder}/home TMPDIR={folder}/temporary
"""
CLIENT = """Host board
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True)
class Board:
    """A board: `config` is what ssh needs to reach it as `board`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        return self.folder / "config"

    @property
    def temporary(self) -> list[Path]:
        """Our temporary folders that are left on the board."""
        return list((self.folder / "temporary").glob("resnet-deploy*"))

    def put_program(self, name: str, script: str) -> None:
        """A program on the board's path, as a script for sh."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def client(self, *lines: str) -> Path:
        """A configuration of ssh where these lines win over the usual ones."""
        path = self.folder / "changed"
        path.write_text("".join(f"{line}\n" for line in lines) + self.config.read_text())
        return path

    def drop_connections(self) -> None:
        """End the processes of sshd that serve connections, as when the network fails; new ones are taken."""
        for process in [*serving(self.process.pid)]:
            os.kill(process, signal.SIGKILL)


def serving(process: int) -> Iterator[int]:
    """The processes of sshd below one of them; what it runs for its users is not among them."""
    for child in map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        if Path(f"/proc/{child}/comm").read_text().startswith("sshd"):
            yield child
            yield from serving(child)


@pytest.fixture(name="sshd", scope="module")
def sshd_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """The board; skips where sshd is not installed, or takes no login."""
    missing = [name for name, there in (("sshd", SSHD), ("ssh-keygen", shutil.which("ssh-keygen"))) if not there]
    if missing or SSHD is None:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: openssh-server)")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for name in ("bin", "home", "temporary"):
        (folder / name).mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "server").write_text(SERVER.format(folder=folder, port=port))
    (folder / "config").write_text(CLIENT.format(folder=folder, port=port, user=getpass.getuser()))
    key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    made = os.geteuid() == 0 and not SEPARATION.exists()
    if made:
        SEPARATION.mkdir(mode=0o755)
    command = [SSHD, "-D", "-e", "-f", str(folder / "server")]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            board = Board(folder, port, process)
            _wait_for_login(board)
            yield board
        finally:
            process.terminate()
            if made:
                SEPARATION.rmdir()


@pytest.fixture(name="board")
def board_fixture(sshd: Board) -> Board:
    """The board as new."""
    for name in ("bin", "home", "temporary"):
        shutil.rmtree(sshd.folder / name)
        (sshd.folder / name).mkdir()
    return sshd


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def _wait_for_login(board: Board) -> None:
    log = board.folder / "log"
    for _ in range(50):
        said = subprocess.run(["ssh", "-F", board.config, "board", "true"], capture_output=True, text=True, check=False)
        if said.returncode == 0:
            return
        if board.process.poll() is not None or "refused" not in said.stderr:
            break
        time.sleep(0.1)
    pytest.skip(f"sshd takes no login here: {said.stderr.strip()}; {log.read_text().strip().splitlines()[-1:]}")
