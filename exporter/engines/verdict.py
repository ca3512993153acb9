"""Ask TensorRT-RTX's parser and builder, which need no GPU, whether they take an ONNX file of any origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.engines.builders._network import refusal_of
from exporter.engines.layers import layer_facts, layers_from_log
from runtimes._plugins import needed_for
from runtimes.nvidia.log import log_of

if TYPE_CHECKING:
    import tensorrt as trt

REMEDY = "pip install tensorrt-rtx-cu13"
TARGET = "SM86"
"""The GPU that is built for; it has every type but FP8 and FP4."""
FREE_BATCH, FREE_SIDE = 1, 224
"""What free sizes are built with: those of pictures are the last two or, of channels last, the middle two."""


@dataclass(frozen=True)
class BuilderVerdict:
    """What a builder makes of a file.

    Attributes:
        builder: its name and version.
        refusal: why the parser or the builder refuses the file; empty where an engine was built.
        sizes: input -> the shape it was built with, where sizes are free; of an input that is a size itself its
            value, behind its name and an equals sign.
        convolutions: how many convolutions read each type, such as `{"int8": 20, "fp16": 1}`; empty where refused.
    """

    builder: str
    refusal: str
    sizes: Mapping[str, tuple[int, ...]]
    convolutions: Mapping[str, int]


def builder_verdict(path: str) -> tuple[Literal["ok"], BuilderVerdict]:
    """Parse and build a file, as work for a process of its own: a parser may crash.

    Raises:
        BackendUnavailable: TensorRT-RTX is not installed.
    """
    with needed_for("--build", REMEDY):
        import tensorrt_rtx as api
    log = log_of(api)
    name = f"TensorRT-RTX {api.__version__}"
    with log.recording() as recording:
        builder: trt.Builder = api.Builder(log.logger)
        network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser: Any = api.OnnxParser(network, log.logger)
        if not parser.parse_from_file(str(Path(path).resolve())):
            return "ok", BuilderVerdict(name, refusal_of(parser).removeprefix(":").strip(), {}, {})
        config: Any = builder.create_builder_config()
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(api.ComputeCapability, TARGET), 0)
        sizes = _add_profile(builder, config, network)
        with log.recording() as building:
            plan = builder.build_serialized_network(network, config)
        del parser  # its memory holds the weights until here
        if plan is None or plan.nbytes == 0:
            return "ok", BuilderVerdict(name, building.reason, sizes, {})
    return "ok", BuilderVerdict(name, "", sizes, _types_read(api, network, recording.text))


def _add_profile(builder: trt.Builder, config: Any, network: trt.INetworkDefinition) -> dict[str, tuple[int, ...]]:
    """Fix the free sizes of every input; returns the shapes of those that have some."""
    profile: Any = builder.create_optimization_profile()
    fixed: dict[str, tuple[int, ...]] = {}
    for place in range(network.num_inputs):
        value: Any = network.get_input(place)
        shape = tuple(value.shape)
        if value.is_shape_tensor:
            values = (1,) * (shape[0] if shape else 1)
            profile.set_shape_input(value.name, values, values, values)
            fixed[f"{value.name} ="] = values
        elif any(size < 0 for size in shape):
            sides = (1, 2) if len(shape) == 4 and shape[3] in (1, 3, 4) else (2, 3)
            chosen = tuple(
                size if size >= 0 else FREE_SIDE if axis in sides and len(shape) == 4 else FREE_BATCH
                for axis, size in enumerate(shape)
            )
            profile.set_shape(value.name, chosen, chosen, chosen)
            fixed[str(value.name)] = chosen
    if fixed:
        config.add_optimization_profile(profile)
    return fixed


def _types_read(api: Any, network: trt.INetworkDefinition, log: str) -> dict[str, int]:
    """How many of the network's convolutions, transposed ones included, read each type."""
    kinds = (api.LayerType.CONVOLUTION, api.LayerType.DECONVOLUTION)
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    names = [layer.name for layer in layers if layer.type in kinds]
    return dict(layer_facts(layers_from_log(log), names, "int8").convolutions)
