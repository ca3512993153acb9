"""TensorRT-RTX as a judge: its parser and builder run without a GPU and say what each kernel reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tensorrt_rtx as trt

CONVOLUTIONS = ("correlation", "runtime_fusion")
LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], Outputs: ")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a built engine: its name, kind, and the types of the tensors it reads."""

    name: str
    kind: str
    reads: tuple[str, ...]


class Log(trt.ILogger):
    """Keeps every line. One for the process: TensorRT ignores a second logger."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[trt.ILogger.Severity, str]] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.lines.append((severity, message))


LOG = Log()


def kernels_from_onnx(model: bytes, *, batch: tuple[int, int, int], targets: Sequence[str]) -> list[Kernel]:
    """Build an engine for `targets` (sm86, ...) and list its kernels; fails with the parser's or builder's own words."""
    LOG.lines.clear()
    builder = trt.Builder(LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse(model), [parser.get_error(place).desc() for place in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    source = network.get_input(0)
    profile.set_shape(source.name, *((size, *tuple(source.shape)[1:]) for size in batch))
    assert config.add_optimization_profile(profile) >= 0
    config.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        assert config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), place)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, [message for severity, message in LOG.lines if severity <= trt.ILogger.Severity.ERROR]
    found = [match for _, message in LOG.lines for match in LAYER.finditer(message)]
    assert found, "the build log lists no layers"
    return [Kernel(match["name"], match["kind"], tuple(re.findall(r"Datatype: (\w+)", match["inputs"]))) for match in found]
