"""Options that several verbs of `resnet-deploy` share."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from exporter.cli._help import Command, option_group
from runtimes.errors import PlanError
from runtimes.tuning import Tuning

if TYPE_CHECKING:
    from calibration.distributed.address import RayRequest

backend_group, output_group = map(option_group, ("Backend", "Output"))

trust_option = backend_group(
    "--trust-engine",
    "trust_engines",
    multiple=True,
    metavar="SHA256",
    help="Load this engine although another machine built it; an engine is code. Repeatable.",
)
provider_option = backend_group(
    "--provider",
    metavar="NAME",
    help="Device to run on: cpu, cuda, or ONNX Runtime's tensorrt.  [default: the backend's choice]",
)


url_option = backend_group(
    "--url",
    metavar="URL",
    help="Model on a server for --backend triton: grpc://HOST:8001/MODEL[/VERSION], or grpcs:// for TLS.",
)


def _backend_here(_context: click.Context, _option: click.Parameter, name: str | None) -> str:
    """The backend that was named, or else `onnxruntime`; on a board, which has none, `auto`: the engine built there."""
    return name or ("auto" if find_spec("onnxruntime") is None else "onnxruntime")


backend_option = backend_group(
    "--backend",
    callback=_backend_here,
    metavar="NAME|auto",
    help="Backend that runs the model; auto takes the fastest that bench measured.  "
    "[default: onnxruntime, or auto where that is not installed]",
)


def _tuning(_context: click.Context, _option: click.Parameter, threads: int | None) -> Tuning:
    """The setting of `--threads`; refuses a number that is out of range before anything is read."""
    return Tuning(threads)


threads_option = backend_group(
    "--threads",
    "tuning",
    type=int,
    callback=_tuning,
    metavar="N",
    help="Threads of the processor that a backend uses.  [default: the cores that this process may use]",
)


def needs_gpu(backend: str, provider: str | None) -> bool:
    """Whether a worker that runs this backend needs a GPU of its cluster."""
    return backend in ("tensorrt", "tensorrt-rtx") or (backend != "triton" and provider not in (None, "cpu"))


def _ray(context: click.Context, _option: click.Parameter, text: str | None) -> RayRequest | None:
    """Where `--ray` wants its workers, with as many GPUs as `--gpus-per-worker` says."""
    from calibration.distributed.request import ray_request

    gpus = context.params.pop("gpus_per_worker")
    if text is not None:
        return ray_request(text, gpus)
    if gpus is not None:
        raise PlanError("--gpus-per-worker is for the workers of --ray; add it, or leave --gpus-per-worker out")
    return None


def ray_options(command: Command) -> Command:
    """Give a command `--ray` and `--gpus-per-worker`, as one parameter `ray`: a RayRequest, or None."""
    group = option_group("Several workers")
    ray = group(
        "--ray",
        callback=_ray,
        metavar="WHERE",
        help="Share the work among workers of Ray: local[:N] starts N on this machine, auto joins the cluster that"
        " this machine is part of (HOST:PORT if there are several), ray://HOST:PORT one elsewhere.",
    )
    gpus = group(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        is_eager=True,
        metavar="X",
        help="GPUs of each worker of --ray; 0.5 lets two share one.  [default: 1 where the backend needs one, else 0]",
    )
    return ray(gpus(command))


timeout_option = backend_group(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest time that a backend may take.  [default: no limit]",
)
json_option = output_group("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
quiet_option = output_group("--quiet", is_flag=True, help="Show no progress; errors alone go to stderr.")
