"""Connect to a Ray cluster, or start one on this machine; and how many workers it has room for."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from calibration.distributed.address import RayRequest, address_of
from calibration.distributed.ray import RayExecutor
from runtimes.cores import usable_cores
from runtimes.errors import BackendUnavailable, PlanError

ANSWERS_WITHIN_S = 5.0
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of gRPC says first, with empty settings; a server answers with its own (RFC 9113, 3.4)."""
SETTINGS = 4
"""The type of that frame (RFC 9113, 6.5), in its fourth byte."""
STORE_BYTES = 1 << 27
"""Ray's own store of objects on this machine: counts and histograms are kilobytes. It takes no less than 75 MB."""


@dataclass(frozen=True)
class Node:
    """What a machine of a cluster has."""

    cpus: float
    gpus: float


@contextmanager
def connected(request: RayRequest, threads: int | None, *, gpu: bool) -> Iterator[RayExecutor]:
    """An executor on the cluster that a request means; a cluster of its own ends with it.

    Ray prints nothing meanwhile; nor does anything else that writes to `sys.stdout`.

    Args:
        threads: of each worker; None takes its share of the cores.
        gpu: whether a worker needs a GPU.

    Raises:
        BackendUnavailable: the cluster does not answer, has another version, or no room for a worker.
        PlanError: a worker needs a GPU, and is to have none.
    """
    gpus = (1.0 if gpu else 0.0) if request.gpus is None else request.gpus
    if gpu and not gpus:
        raise PlanError("expected GPUs for a backend that runs on one, got --gpus-per-worker 0; leave that out")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray tells deaths there, amid our JSON
        _connect(request)
        try:
            nodes = [
                Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in ray.nodes()
                if node["Alive"]
            ]
            if request.address == "local":
                yield local_executor(request.workers, threads, gpus, nodes)
            else:
                yield cluster_executor(threads, gpus, nodes)
        finally:
            ray.shutdown()


def local_executor(workers: int | None, threads: int | None, gpus: float, nodes: Sequence[Node]) -> RayExecutor:
    """Workers on this machine: as many as asked for, else one for each core or GPU. They share the cores."""
    room = _room_for_gpus(nodes, gpus) if gpus else usable_cores()
    count = min(workers or room, room) if gpus else workers or room
    return RayExecutor(count, threads or max(1, usable_cores() // count), 1.0, gpus)


def cluster_executor(threads: int | None, gpus: float, nodes: Sequence[Node]) -> RayExecutor:
    """As many workers as a cluster has room for: one for each `threads` cores (None: each core), or one for each
    `gpus` GPUs, which then share the cores of their machine.

    Raises:
        BackendUnavailable: it has room for none.
    """
    if gpus:
        _room_for_gpus(nodes, gpus)
        shares = [(int(node.gpus / gpus), node.cpus) for node in nodes if node.gpus >= gpus]
        cpus = threads or max(1, min(int(cores // count) for count, cores in shares))
        count = sum(min(count, int(cores // cpus)) for count, cores in shares)
    else:
        cpus = threads or 1
        count = sum(int(node.cpus // cpus) for node in nodes)
    if not count:
        most = max((node.cpus for node in nodes), default=0)
        raise BackendUnavailable(
            f"expected a machine with {cpus} free cores in the Ray cluster, got at most {most:g}; ask for fewer with "
            "--threads"
        )
    return RayExecutor(count, cpus, float(cpus), gpus)


def _room_for_gpus(nodes: Sequence[Node], gpus: float) -> int:
    """How many workers with so many GPUs each have room.

    Raises:
        BackendUnavailable: none.
    """
    room = sum(int(node.gpus / gpus) for node in nodes)
    if not room:
        most = max((node.gpus for node in nodes), default=0)
        has = f"with at most {most:g} on a machine" if most else "without any"
        raise BackendUnavailable(
            f"expected {gpus:g} GPU{'s' * (gpus > 1)} for each worker, got a Ray cluster {has}; add a machine that has "
            "them, choose another --backend or --provider, or ask for fewer with --gpus-per-worker"
        )
    return room


def _connect(request: RayRequest) -> None:
    """Connect this process.

    Raises:
        BackendUnavailable: there is no cluster, it does not answer, or it has another version of Ray or Python.
    """
    own: dict[str, Any] = {}
    found = os.environ.get("RAY_ADDRESS", "") if request.address == "auto" else request.address
    if request.address == "local":
        cores = max(usable_cores(), request.workers or 0)
        own = {"num_cpus": cores, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    elif address_of(found) is not None:
        _check_answers(found)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _silenced_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(request.address, log_to_driver=False, logging_level="CRITICAL", **own)
    except (ConnectionError, RayError, RuntimeError, ValueError, OSError, SystemExit) as error:
        raise BackendUnavailable(_refusal(request.address, error)) from error
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _refusal(address: str, error: BaseException) -> str:
    said = " ".join(str(error).split())
    if "uthentication" in f"{error} {error.__cause__}":
        return (
            f"--ray {address}: expected the token that this cluster asks for, got none or another; set RAY_AUTH_MODE="
            "token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        )
    if "ersion mismatch" in said or "versions differ" in said:
        return f"--ray {address}: expected the cluster's versions of Ray and Python, got others: {said}"
    if address == "auto":
        return "--ray auto: expected a Ray cluster that this machine is part of, got none; start one with `ray start`"
    if address == "local":
        return f"--ray local: Ray does not start here: {said}"
    if "ray[client]" in said:
        return f"--ray {address}: Ray's client is not installed; pip install 'ray[client]'"
    if address.startswith("ray://"):
        return (
            f"--ray {address}: no server of Ray's client lets this machine in there ({said}); give the port of one, "
            "10001 unless the cluster has another, and set RAY_AUTH_MODE=token if the cluster asks for its token"
        )
    return (
        f"--ray {address}: no Ray cluster answers there, or this machine is not part of it ({said}); run this on one of"
        f" its machines, or give ray://HOST:10001"
    )


def _check_answers(address: str) -> None:
    """Check that a server of gRPC answers: Ray tries for a minute where none does, and then ends the process.

    Raises:
        BackendUnavailable: it does not.
    """
    place = address_of(address)
    assert place is not None
    try:
        with socket.create_connection(place, timeout=ANSWERS_WITHIN_S) as connection:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # whoever listens there expects a greeting that is encrypted
            connection.settimeout(ANSWERS_WITHIN_S)
            connection.sendall(HTTP2_GREETING)
            said = connection.recv(9)
    except OSError as error:
        raise BackendUnavailable(
            f"--ray {address}: expected a Ray cluster, got no answer ({error.strerror or error}); start one with `ray "
            "start --head`, or give the address that it printed"
        ) from error
    if len(said) < 4 or said[3] != SETTINGS:
        raise BackendUnavailable(
            f"--ray {address}: expected a Ray cluster, got another server; give the address that `ray start --head` "
            "printed, or ray://HOST:10001"
        )


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
