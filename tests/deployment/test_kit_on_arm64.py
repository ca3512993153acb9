"""A kit's `install.sh` on another architecture: in a bare arm64 Debian, under QEMU's user-mode emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Ran
from kits import unpacked

TOOLS = ("proot", "libtalloc2", "qemu-user-static")
"""Of this machine's own architecture, x86-64."""
SYSTEM = (*("base-files", "coreutils", "dash", "grep", "libc-bin", "sed"), *("libstdc++6", "python3-venv"))
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "bookworm"
PYTHON = "cp311"
"""Of that release."""
CONFIGURATION = """
APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }}; APT::Sandbox::User "root";
APT::Install-Recommends "false"; Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "{folder}/none";
Dir::Etc::preferencesparts "{folder}/none"; Dir::Etc::preferences "{folder}/none/none";
"""


def fetched(folder: Path, architecture: str, packages: tuple[str, ...]) -> Path:
    """Unpack Debian packages, with all that they need, into a folder; apt's own settings and state are not touched."""
    for name in ("state/lists/partial", "cache/archives/partial", "none", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "state" / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] http://deb.debian.org/debian {RELEASE} main\n")
    (folder / "apt.conf").write_text(CONFIGURATION.format(architecture=architecture, folder=folder))
    for words in (["update"], ["install", "--yes", "--download-only", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *words],
            env={**os.environ, "APT_CONFIG": str(folder / "apt.conf")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"apt-get {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    for package in (folder / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
    return folder / "root"


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="it emulates arm64 on x86-64")
@pytest.mark.skipif(not (shutil.which("apt-get") and Path(KEYS).exists()), reason="it takes its system from Debian")
def test_all_but_tensorrt_is_installed_on_arm64(exported: Path, deploy: Callable[..., Ran], tmp_path: Path) -> None:
    tools, root = fetched(tmp_path / "tools", "amd64", TOOLS), fetched(tmp_path / "arm64", "arm64", SYSTEM)
    ran = deploy("kit", exported, "--output", tmp_path / "kit.tar", "--wheels", f"linux-aarch64-{PYTHON}")
    assert ran.code == 0, ran.err
    unpacked(tmp_path / "kit.tar", root)

    def emulated(*command: str) -> subprocess.CompletedProcess[str]:
        proot: list[str | Path] = [
            tools / "usr/bin/proot",
            "-q",
            tools / "usr/bin/qemu-aarch64-static",
            "-r",
            root,
            "-w",
            "/",
        ]
        return subprocess.run(
            [*proot, "-b", "/proc", "-b", "/dev", *command],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": "/root",
                "LD_LIBRARY_PATH": str(tools / "usr/lib/x86_64-linux-gnu"),
                "PROOT_TMP_DIR": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    (root / "root").mkdir(exist_ok=True)
    done = emulated("/bin/sh", "/resnet-kit/install.sh")
    assert done.returncode == 3, done.stderr
    assert "TensorRT is missing, all else is installed: expected 'import tensorrt' to work in python3" in done.stderr
    code = f"import platform, runtimes; print(platform.machine(), runtimes.Bundle.open({f'/resnet-kit/bundles/{exported.name}'!r}).manifest.name)"
    opened = emulated("/root/resnet/bin/python", "-c", code)
    assert opened.stdout == "aarch64 resnet20-fp16\n", opened.stderr
