"""A real Triton server on a model repository, on a machine without a GPU: `make triton-server` has it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "build" / "triton"
TRITON = FOLDER / "server" / "pytriton" / "tritonserver"
START_SECONDS = 60.0


@dataclass(frozen=True)
class TritonServer:
    """A server that is ready: where it listens (`host:port`), and the file it writes to."""

    http: str
    grpc: str
    metrics: str
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, *, server: str | None = None) -> bytes:
        """The answer of a GET over HTTP."""
        with urllib.request.urlopen(f"http://{server or self.http}{path}", timeout=10) as answer:
            body: bytes = answer.read()
        return body


class ServerEnded(AssertionError):
    """The server ended before it was ready; carries its log."""


def need_server() -> None:
    """Skip the test where there is no server."""
    if not (FOLDER / "made.txt").exists():
        pytest.skip("no Triton server here: make triton-server has not been run")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _environment() -> dict[str, str]:
    """The server's Python backend finds its packages by PYTHONPATH, and the library of Python by its folder."""
    python = FOLDER / "python"
    packages = python / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return {
        **kept,
        "PATH": f"{python / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        "CUDA_VISIBLE_DEVICES": "",
    }


@contextmanager
def triton_server(
    repository: Path, log: Path, *options: str, config: str | None = "ci", backends: Path = TRITON / "backends"
) -> Iterator[TritonServer]:
    """Start a server on `repository`, wait until it is ready, and stop it in the end.

    Args:
        log: the file that it writes to.
        options: more words for its command line.
        config: the name of the configuration that it reads where a model has it; None reads `config.pbtxt`.
        backends: the folder of its backends.

    Raises:
        ServerEnded: it did not take the repository, or was not ready in time.
    """
    http, grpc, metrics = _free_ports(3)
    command = [
        str(TRITON / "bin" / "tritonserver"),
        *("--model-repository", str(repository), "--backend-directory", str(backends)),
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        *(f"--metrics-port={metrics}", "--exit-on-error=true", "--disable-auto-complete-config"),
        *(() if config is None else (f"--model-config-name={config}",)),
        *options,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=_environment())
    server = TritonServer(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}", log, process)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: TritonServer) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ServerEnded(server.log.read_text(errors="replace"))
        try:
            server.get("/v2/health/ready")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise ServerEnded(f"not ready after {START_SECONDS:.0f} s\n{server.log.read_text(errors='replace')}")
