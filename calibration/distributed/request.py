"""What a text of `--ray` asks for, and the executor that it means; loads Ray where that is wanted, and no sooner."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from calibration.distributed.address import RayRequest, address_of
from calibration.distributed.local import Local
from calibration.distributed.shards import Executor
from runtimes._plugins import needed_for
from runtimes.errors import BadInput, PlanError

MOST_WORKERS = 256
"""On one machine: each is a process of some hundred megabytes."""
PATIENCE = {
    "RAY_NUM_REDIS_GET_RETRIES": "10",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "3",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5",
}
"""How long Ray tries where it is not let in: ten times, a second apart, and 3 + 5 + 5 s by its client; its own are 20 s
and 30 s."""
HERE_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, Ray listens to this machine alone; else to its network, where older versions run whatever they are sent."""
WHERE = "local, local:N, auto, HOST:PORT or ray://HOST:PORT"


def ray_request(text: str, gpus: float | None = None) -> RayRequest:
    """The request that a text such as `local:4` makes.

    Raises:
        BadInput: it is none.
        PlanError: no worker, or more than 256 on this machine; no share of a GPU that Ray knows.
    """
    if gpus is not None and not (0 <= gpus < math.inf and (gpus < 1 or gpus == int(gpus))):
        raise PlanError(f"expected a share of one GPU, or a whole number of them, got {gpus} for --gpus-per-worker")
    name, _, count = text.partition(":")
    if name == "local":
        if text == name:
            return RayRequest(name, None, gpus)
        if not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= MOST_WORKERS):
            raise PlanError(f"--ray: expected from 1 to {MOST_WORKERS} workers, got '{text}'; give local:N, as local:4")
        return RayRequest(name, int(count), gpus)
    if text == "auto":
        return RayRequest(text, None, gpus)
    if address_of(text) is None:
        raise BadInput(f"--ray: expected {WHERE}, got '{text}'")
    return RayRequest(text, None, gpus)


@contextmanager
def executor_of(request: RayRequest | None, threads: int | None, *, gpu: bool = False) -> Iterator[Executor]:
    """The executor that a request means, ready to run; None means this process.

    Args:
        threads: of each worker; None takes its share of the cores.
        gpu: whether the task needs a GPU.

    Raises:
        BackendUnavailable: Ray is not installed, the cluster does not answer, or has no room for a worker.
    """
    if request is None:
        yield Local(threads)
        return
    # Ray reads its settings once: most when it is imported, those of its client when that is.
    alone = request.address == "local" and HERE_ALONE not in os.environ
    settings = {HERE_ALONE: "0"} if alone else {} if request.address == "local" else PATIENCE
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        with needed_for("--ray", "pip install 'resnet-export[ray]'"):
            from calibration.distributed.cluster import connected
    finally:
        if alone:  # a process that this one starts may be part of a cluster
            del os.environ[HERE_ALONE]
    with connected(request, threads, gpu=gpu) as executor:
        yield executor
