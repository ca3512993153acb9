"""What a text of `--ray` asks for, and the executor that it means; loads Ray where that is wanted, and no sooner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from calibration.distributed.address import RayRequest, address_of
from calibration.distributed.local import Local
from calibration.distributed.shards import Executor
from runtimes.errors import BackendUnavailable, BadInput, PlanError

MOST_WORKERS = 256
"""On one machine: each is a process of some hundred megabytes."""
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
    try:
        from calibration.distributed.cluster import connected
    except ImportError as error:
        raise BackendUnavailable("--ray needs Ray; pip install 'resnet-export[ray]'") from error
    with connected(request, threads, gpu=gpu) as executor:
        yield executor
