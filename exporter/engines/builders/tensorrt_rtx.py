"""TensorRT-RTX: engines for GeForce and RTX GPUs (Turing to Blackwell), built on any machine, with or without a GPU."""

from __future__ import annotations

import tensorrt_rtx as api

from exporter.engines.builders import BuildOptions, BuildTargets, EngineBuild, Job
from exporter.engines.builders._network import build_network
from exporter.engines.layers import layers_from_log
from runtimes.errors import PlanError, UnknownName
from runtimes.progress import Progress

VERSION: str = api.__version__
UNSUPPORTED_OPTIONS = {
    "timing_cache": "--timing-cache: TensorRT-RTX compiles its kernels when the engine is loaded and times none",
    "dla_core": "--dla: TensorRT-RTX runs on GeForce and RTX GPUs, which have no DLA",
    "hardware_compatible": "--hardware-compatible: give TensorRT-RTX every GPU with --target instead",
    "version_compatible": "--version-compatible: TensorRT-RTX's package has no lean runtime to put into the engine",
    "strip_weights": "--strip-weights: TensorRT-RTX needs a GPU to strip an engine",
}


def target_names() -> tuple[str, ...]:
    """The compute capabilities this version builds for."""
    return tuple(name.lower() for name in api.ComputeCapability.__members__ if name.startswith("SM"))


def choose_targets(options: BuildOptions) -> BuildTargets:
    """The targets asked for, or all that the library has; needs no GPU.

    Raises:
        UnknownName: TensorRT-RTX does not have a target.
        PlanError: TensorRT-RTX does not have an option.
    """
    for name, reason in UNSUPPORTED_OPTIONS.items():
        value = getattr(options, name)
        if value is not None and value is not False:
            raise PlanError(f"{reason}; leave it out")
    known = target_names()
    for target in options.targets:
        if target not in known:
            raise UnknownName("target", target, known)
    return BuildTargets(tuple(sorted(set(options.targets), key=known.index)) or known, device=None)


def build(job: Job, on_step: Progress) -> EngineBuild:
    """Build an engine for the targets; its layers are those that the builder's log lists."""
    targets = choose_targets(job.options).names

    def configure(builder: object, config: api.IBuilderConfig) -> None:
        config.num_compute_capabilities = len(targets)
        for place, target in enumerate(targets):
            config.set_compute_capability(getattr(api.ComputeCapability, target.upper()), place)

    network = build_network(api, job, configure, on_step)
    return EngineBuild(network, layers_from_log(network.log.text))
