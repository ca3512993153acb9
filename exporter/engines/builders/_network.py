"""Build an engine from a typed ONNX graph, in one way for TensorRT 10.3 to 11.x and TensorRT-RTX.

The precision is in the graph, so networks are strongly typed. `api` is the module `tensorrt` or `tensorrt_rtx`, whose
names are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from exporter.engines.builders import BuiltNetwork, Job
from runtimes.errors import BuildError
from runtimes.nvidia.log import Recording, log_of
from runtimes.preprocess import takes_any_size
from runtimes.specs import PICTURE_SIDES

if TYPE_CHECKING:
    import tensorrt as trt

    from runtimes.progress import Progress

WEAK_TYPES: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("FP16", "INT8")}
"""The builder flags that allow a weakly typed network the types of the bundle's precision, and no other."""


class _Parsed(NamedTuple):
    """A parsed graph.

    Attributes:
        parser: owns the network's weights, and must outlive the build.
        typed_refusal: why the typed graph was refused, so that the network is weakly typed; empty where it was not.
    """

    network: trt.INetworkDefinition
    parser: trt.OnnxParser
    typed_refusal: str


def build_network(api: Any, job: Job, configure: Callable[[Any, Any], None], on_step: Progress) -> BuiltNetwork:
    """Parse the graph, configure the builder, and build.

    An interruption stops the build: the builder runs in its own thread and stops at its next step.

    Args:
        configure: sets what only this library has, `configure(builder, config)`.

    Raises:
        BuildError: the parser or the builder refused the graph; gives their reason, the node, and what to do.
    """
    log = log_of(api)
    with log.recording() as recording:
        builder: trt.Builder = api.Builder(log.logger)
        on_step("parse")
        network, parser, typed_refusal = _parse(api, builder, job)
        if network.num_layers == 0:
            raise BuildError("TensorRT refuses model.onnx: it holds no graph; export the bundle again")
        config = builder.create_builder_config()
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # or nobody can tell in which precision it runs
        _set_options(api, config, job)
        if typed_refusal:
            for name in WEAK_TYPES.get(job.precision, ()):
                config.set_flag(getattr(api.BuilderFlag, name))
        _add_profile(builder, config, network, job)
        configure(builder, config)
        cache = _timing_cache(api, config, job.options.timing_cache)
        monitor = _monitor(api, on_step)
        config.progress_monitor = monitor
        with log.recording() as building:  # apart from what the parser said of a typed graph that it refused
            plan = _run_interruptibly(lambda: builder.build_serialized_network(network, config), monitor)
        del parser  # its memory holds the weights until here
        if plan is None or plan.nbytes == 0:
            weakly = f" (with weak typing, for the typed graph was refused: {typed_refusal})" if typed_refusal else ""
            raise BuildError(f"the engine could not be built: {building.reason}{weakly}")
        return BuiltNetwork(
            plan=bytes(memoryview(plan)),
            convolutions=_convolutions(api, network),
            typing="weak" if typed_refusal else "strong",
            typed_refusal=typed_refusal,
            order=tuple(network.get_layer(place).name for place in range(network.num_layers)),
            log=recording,
            timing_cache=bytes(memoryview(cache.serialize())) if cache else None,
            left_in_float=_left_in_float(api, network),
        )


def _parse(api: Any, builder: trt.Builder, job: Job) -> _Parsed:
    """Parse the graph into a strongly typed network, or into a weakly typed one where TensorRT 10 refuses that.

    TensorRT 10's early parsers are stricter about typed Q/DQ pairs than 11's. Where one refuses the typed graph and the
    library still has weak typing, that is tried: flags say which types may be used, and the proof of precision
    afterwards says which were.

    Raises:
        BuildError: the graph was refused, with the reason; where weak typing was refused too, with both reasons.
    """
    log = log_of(api)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: trt.OnnxParser = api.OnnxParser(network, log.logger)
    if parser.parse(job.onnx):
        return _Parsed(network, parser, "")
    refusal = refusal_of(parser)
    resizes = any(takes_any_size(spec) for spec in job.inputs)  # in FP32, which weak typing would not keep to
    if hasattr(api.BuilderFlag, "FP16") and hasattr(api.BuilderFlag, "INT8") and not resizes:
        network = builder.create_network(0)
        parser = api.OnnxParser(network, log.logger)
        if parser.parse(job.onnx):
            return _Parsed(network, parser, refusal.removeprefix(": "))
        weakly = refusal_of(parser)
        if weakly != refusal:
            raise BuildError(f"TensorRT refuses model.onnx{refusal}; and with weak typing{weakly}")
    raise BuildError(f"TensorRT refuses model.onnx{refusal}")


def refusal_of(parser: trt.OnnxParser) -> str:
    """The parser's errors in one line: the node and its operator, the reason, and the remedy."""
    recording = Recording([(1, parser.get_error(place).desc()) for place in range(parser.num_errors)])
    first = parser.get_error(0) if parser.num_errors else None
    node = f" at {first.node_name()} ({first.node_operator()})" if first is not None and first.node_name() else ""
    return f"{node}: {recording.reason}"


def _set_options(api: Any, config: trt.IBuilderConfig, job: Job) -> None:
    options = job.options
    if job.precision == "fp32":
        config.clear_flag(api.BuilderFlag.TF32)  # it keeps ten bits of mantissa; FP32 was asked for
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(api.BuilderFlag.STRIP_PLAN)
    if options.hardware_compatible is not None:
        name = options.hardware_compatible.upper().replace("-", "_")
        level = getattr(api.HardwareCompatibilityLevel, name, None)
        if level is None:
            raise BuildError(
                f"this version has no hardware compatibility level '{options.hardware_compatible}'; "
                "update TensorRT, or leave it out"
            )
        config.hardware_compatibility_level = level


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, job: Job) -> None:
    """Add one optimization profile over the batch range, and over the picture sizes where the graph takes any.

    Input names are checked here, since `set_shape` silently accepts an unknown one.
    """
    names = {network.get_input(place).name for place in range(network.num_inputs)}
    expected = {spec.name for spec in job.inputs}
    if names != expected:
        told, found = ", ".join(sorted(expected)), ", ".join(sorted(names)) or "none"
        raise BuildError(f"expected the inputs {told}, as the manifest says, got {found}; export the bundle again")
    profile = builder.create_optimization_profile()
    ranges = list(zip((job.batch.min, job.batch.opt, job.batch.max), PICTURE_SIDES, strict=True))
    for spec in job.inputs:
        profile.set_shape(
            spec.name,
            *([rows, *(side if isinstance(size, str) else size for size in spec.shape[1:])] for rows, side in ranges),
        )
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(
            f"TensorRT refuses the batch range {job.batch}; export the bundle again with --batch MIN:OPT:MAX"
        )


def _timing_cache(api: Any, config: trt.IBuilderConfig, data: bytes | None) -> trt.ITimingCache | None:
    """Use an earlier build's timing cache; an empty one if it is of another version or device, or damaged."""
    if data is None:
        return None
    editable = getattr(api.BuilderFlag, "EDITABLE_TIMING_CACHE", None)
    if editable is not None:  # not in 10.3
        config.set_flag(editable)
    cache: trt.ITimingCache | None = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _convolutions(api: Any, network: trt.INetworkDefinition) -> tuple[str, ...]:
    """Names of the network's convolutions, which are those of the ONNX nodes."""
    layers = (network.get_layer(place) for place in range(network.num_layers))
    return tuple(layer.name for layer in layers if layer.type == api.LayerType.CONVOLUTION)


def _left_in_float(api: Any, network: trt.INetworkDefinition) -> frozenset[str]:
    """Names of the convolutions whose input has no Q/DQ pair; empty for a graph in which none has one."""
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    dequantized = {layer.get_output(0).name for layer in layers if layer.type == api.LayerType.DEQUANTIZE}
    convolutions = {layer.name: layer.get_input(0).name for layer in layers if layer.type == api.LayerType.CONVOLUTION}
    floats = frozenset(name for name, read in convolutions.items() if read not in dequantized)
    return floats if len(floats) < len(convolutions) else frozenset()


def _monitor(api: Any, on_step: Progress) -> Any:
    """An IProgressMonitor that reports the latest phase to `on_step`, and stops the build once `stopped` is set."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]  # which library it is, is known at run time alone
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.stopped = False
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            on_step(f"build: {phase[:1].lower()}{phase[1:]}", 0, max(steps, 0))

        def step_complete(self, phase: str, step: int) -> bool:
            if not self.stopped:
                on_step(f"build: {phase[:1].lower()}{phase[1:]}", step + 1, max(self.steps.get(phase, 0), step + 1))
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _run_interruptibly(work: Callable[[], trt.IHostMemory | None], monitor: Any) -> trt.IHostMemory | None:
    """Run `work` in another thread: it leaves Python for minutes, and only the main thread gets signals."""
    with ThreadPoolExecutor(1, thread_name_prefix="builder") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            monitor.stopped = True
            raise
