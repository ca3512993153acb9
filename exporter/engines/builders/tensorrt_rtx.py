"""TensorRT-RTX: engines for GeForce and RTX GPUs (Turing to Blackwell), built on any machine, with or without a GPU."""

from __future__ import annotations

import tensorrt_rtx as api

from exporter.engines.builders._layers import EngineLayer, layers_from_log
from exporter.engines.builders._network import BuildOptions, Built, Job, built
from runtimes.errors import PlanError, UnknownName
from runtimes.nvidia.engine_file import DeviceFacts
from runtimes.progress import Progress

VERSION: str = api.__version__
NOT_HERE = {
    "timing_cache": "--timing-cache: TensorRT-RTX compiles its kernels when the engine is loaded and times none",
    "dla_core": "--dla: TensorRT-RTX runs on GeForce and RTX GPUs, which have no DLA",
    "hardware_compatible": "--hardware-compatible: give TensorRT-RTX every GPU with --target instead",
    "version_compatible": "--version-compatible: TensorRT-RTX's package has no lean runtime to put into the engine",
    "strip_weights": "--strip-weights: TensorRT-RTX needs a GPU to strip an engine",
}


def target_names() -> tuple[str, ...]:
    """The compute capabilities this version builds for."""
    return tuple(name.lower() for name in api.ComputeCapability.__members__ if name.startswith("SM"))


def here(options: BuildOptions) -> tuple[tuple[str, ...], DeviceFacts | None]:
    """The targets, all that the library has where none is given; no device takes part.

    Raises:
        UnknownName: a target that TensorRT-RTX does not have.
        PlanError: an option that it does not have.
    """
    for name, reason in NOT_HERE.items():
        value = getattr(options, name)
        if value is not None and value is not False:
            raise PlanError(f"{reason}; leave it out")
    known = target_names()
    for target in options.targets:
        if target not in known:
            raise UnknownName("target", target, known)
    return tuple(sorted(set(options.targets), key=known.index)) or known, None


def build(job: Job, on_step: Progress) -> tuple[Built, list[EngineLayer]]:
    """The plan, and its layers as the builder's log lists them."""
    targets, _ = here(job.options)

    def configure(builder: object, config: api.IBuilderConfig) -> None:
        config.num_compute_capabilities = len(targets)
        for place, target in enumerate(targets):
            config.set_compute_capability(getattr(api.ComputeCapability, target.upper()), place)

    result = built(api, job, configure, on_step)
    return result, layers_from_log(result.log.text)
