"""`resnet-deploy triton`: write bundles into a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._common import echo_json, echo_lines
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import json_option, output_group

if TYPE_CHECKING:
    from exporter.deployment.triton.kserve import KServe
    from exporter.deployment.triton.models import TritonModel
    from exporter.deployment.triton.needs import ServerNeeds

BACKENDS = ("tensorrt", "onnxruntime", "openvino")

_models, _serving, _kserve = map(option_group, ("Models", "Serving", "KServe"))


@click.command(cls=GroupedCommand)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_models(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    help="Triton's backend that runs the model. Repeatable: a model NAME-BACKEND for each.  [default: tensorrt for a"
    " bundle with engines for it, else onnxruntime]",
)
@_models("--name", metavar="NAME", help="The model's name; with one bundle.  [default: the bundle's]")
@_models("--version", type=int, default=1, show_default=True, metavar="N", help="The version's number.")
@_models(
    "--engine",
    "engines",
    multiple=True,
    metavar="FILE",
    help="Serve this engine of the bundle's engines/; with tensorrt. Repeatable.  [default: all]",
)
@_models(
    "--trust-engine",
    "trust_engines",
    multiple=True,
    metavar="SHA256",
    help="Serve this engine although another machine built it; an engine is code. Repeatable.",
)
@_models(
    "--ensemble",
    is_flag=True,
    help="Also take picture files: a decoder in front of the model, for a bundle of --uint8-input full.",
)
@_serving(
    "--instances",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="How many run at once, on each GPU or the CPU.",
)
@_serving(
    "--max-delay-us",
    type=int,
    metavar="N",
    help="Let a request wait so long for others to make a batch with, in microseconds.  [default: it does not wait]",
)
@_serving(
    "--serve-versions",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Serve so many of a model's newest versions.",
)
@_kserve(
    "--kserve",
    "kserve_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a Dockerfile and an InferenceService there.",
)
@_kserve("--image", metavar="NAME", help="Name of the image that the Dockerfile builds and the cluster pulls.")
@_kserve("--force", is_flag=True, help="Replace both files if others are there. Models are never replaced.")
@output_group(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The repository; an existing one is added to.",
)
@json_option
def triton(bundles: tuple[Path, ...], output: Path, **options: Any) -> None:
    """Write each BUNDLE as a model of a Triton repository.

    All are written or none. What a repository holds stays as it is: a model that is there gets a new --version. Nothing
    is sent anywhere, and no server is needed.
    """
    from exporter.deployment.triton.config import Serving
    from exporter.deployment.triton.models import TritonPlan, triton_models
    from exporter.deployment.triton.needs import server_needs
    from exporter.deployment.triton.repository import write_repository
    from runtimes.bundle import Bundle
    from runtimes.nvidia.trust import trusted_engines

    plan = TritonPlan(
        tuple(map(Bundle.open, bundles)),
        options["backends"],
        name=options["name"],
        version=options["version"],
        serving=Serving(options["instances"], options["max_delay_us"], options["serve_versions"]),
        engines=options["engines"],
        trusted=trusted_engines(options["trust_engines"]),
        ensemble=options["ensemble"],
    )
    models = triton_models(plan)
    needs = server_needs(output, models)
    kserve = _kserve_of(models, needs, output, options)
    folders = write_repository(models, output, plan.version)
    also = _write_kserve(kserve, output)
    if options["as_json"]:
        return echo_json(
            {
                "repository": str(output),
                "models": [_facts(model, path, plan.version) for model, path in zip(models, folders, strict=True)],
                "server": asdict(needs),
                "kserve": list(map(str, also)),
            }
        )
    echo_lines(
        [
            *_model_lines(models, plan.version),
            *(f"{'wrote':<12} {path}" for path in also),
            *_start_lines(needs, output),
        ]
    )


def _kserve_of(models: list[TritonModel], needs: ServerNeeds, output: Path, options: dict[str, Any]) -> KServe | None:
    """What to write for KServe, checked; None where nothing is asked for."""
    from exporter.deployment.triton.kserve import KServe, check_kserve
    from runtimes.errors import PlanError

    folder, image = options["kserve_folder"], options["image"]
    if folder is None and image is None:
        if options["force"]:
            raise PlanError("--force replaces the files of --kserve, got no --kserve; leave it out")
        return None
    if folder is None or image is None:
        raise PlanError("expected --kserve and --image together, got one of them; give both")
    kserve = KServe(folder, image, needs, replaces=options["force"])
    check_kserve(kserve, output, [model.bundle for model in models])
    return kserve


def _write_kserve(kserve: KServe | None, output: Path) -> list[Path]:
    from exporter.deployment.triton.kserve import write_kserve

    return [] if kserve is None else write_kserve(kserve, output)


def _facts(model: TritonModel, folder: Path, version: int) -> dict[str, object]:
    return {
        "name": model.name,
        "version": version,
        "path": str(folder),
        "bundle": str(model.bundle),
        "served": model.served,
        "needs_gpu": model.needs_gpu,
        "largest_batch": model.largest_batch or None,
    }


def _model_lines(models: list[TritonModel], version: int) -> list[str]:
    lines = []
    for model in models:
        batches = f"batches up to {model.largest_batch}" if model.largest_batch else "batches of any size"
        lines += [f"{'model':<12} {model.name}, version {version}, {batches}", f"{'':<12} {model.served}"]
    return lines


def _start_lines(needs: ServerNeeds, output: Path) -> list[str]:
    """The command that serves the repository, with all the models that it has. A decoder's tensors pass through
    /dev/shm."""
    gpus, shared = " --gpus all" * needs.gpu, " --shm-size 1g" * needs.shared_memory
    mount = shlex.quote(f"{output.absolute()}:/models:ro")
    lines = [
        f"{'serve it':<12} docker run --rm{gpus}{shared} -p 8000-8002:8000-8002 -v {mount} \\",
        f"{'':<12}   nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver --model-repository=/models",
    ]
    if needs.others:
        lines.append(f"{'note':<12} not written by this command, and may need more: {', '.join(needs.others)}")
    return lines
