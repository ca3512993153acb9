"""TensorRT 10.3 to 11.x: engines for the GPU of this machine, a Jetson's too."""

from __future__ import annotations

import tensorrt as api

from exporter.engines.builders import BuildOptions, BuildTargets, EngineBuild, Job
from exporter.engines.builders._network import build_network
from exporter.engines.layers import layers_from_inspector, spread_over_dla
from runtimes.board.dla import DLA_VERSIONS, dla_refusal
from runtimes.board.jetpack import board_name
from runtimes.errors import BackendUnavailable, BuildError, PlanError
from runtimes.nvidia.cuda import Device, device
from runtimes.nvidia.engine_file import DeviceFacts
from runtimes.nvidia.log import log_of
from runtimes.progress import Progress

VERSION: str = api.__version__
SHARED_MEMORY_PART = 2
"""Where GPU and CPU share memory, the builder may use 1/SHARED_MEMORY_PART of what is free: the system needs the
rest."""


def choose_targets(options: BuildOptions) -> BuildTargets:
    """This machine's GPU, the only target of TensorRT.

    Raises:
        BackendUnavailable: there is no GPU, or no driver.
        PlanError: another target was asked for.
    """
    gpu = device()
    if options.targets not in ((), (gpu.target,)):
        raise PlanError(
            f"TensorRT builds for the GPU of the machine it runs on ({gpu.target}), "
            f"not for {', '.join(options.targets)}; "
            "build on that device, or for RTX GPUs with --backend tensorrt-rtx"
        )
    return BuildTargets((gpu.target,), DeviceFacts(gpu.name, gpu.target, gpu.driver))


def build(job: Job, on_step: Progress) -> EngineBuild:
    """Build an engine for this machine's GPU; its layers are those that the engine inspector lists.

    Raises:
        BackendUnavailable: DLA was asked for, and this TensorRT or this board is known to have none.
    """
    gpu = device()
    if job.options.dla_core is not None and (refusal := dla_refusal(VERSION, board_name(), job.precision)):
        raise BackendUnavailable(refusal)

    def configure(builder: api.Builder, config: api.IBuilderConfig) -> None:
        if job.options.workspace_bytes is None and gpu.integrated:
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, gpu.free_bytes // SHARED_MEMORY_PART)
        if job.options.dla_core is not None:
            _use_dla(builder, config, job.options.dla_core, gpu)

    network = build_network(api, job, configure, on_step)
    on_step("inspect")
    layers = layers_from_inspector(_inspector_json(network.plan, job.options))
    return EngineBuild(network, spread_over_dla(layers, network.order))


def _use_dla(builder: api.Builder, config: api.IBuilderConfig, core: int, gpu: Device) -> None:
    """Run on this DLA core, and on the GPU what DLA cannot run.

    Raises:
        PlanError: there is no such core.
        BackendUnavailable: there is no DLA that this TensorRT can use.
    """
    if builder.num_DLA_cores == 0:
        raise BackendUnavailable(
            f"TensorRT {VERSION} finds no DLA on {board_name() or gpu.name}: Jetson AGX Orin and Orin NX have one, "
            f"with {DLA_VERSIONS}; leave out --dla"
        )
    if core >= builder.num_DLA_cores:
        raise PlanError(f"expected --dla below {builder.num_DLA_cores}, got {core}")
    config.default_device_type = api.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(api.BuilderFlag.GPU_FALLBACK)


def _inspector_json(plan: bytes, options: BuildOptions) -> str:
    """The engine inspector's JSON for a plan.

    Raises:
        BuildError: the engine that was just built does not load.
    """
    log = log_of(api)
    with log.recording() as recording:
        runtime = api.Runtime(log.logger)
        if options.version_compatible:
            runtime.engine_host_code_allowed = True  # it holds its own lean runtime, and was built a moment ago
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(f"the engine that was built does not load: {recording.reason}")
        return engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)
