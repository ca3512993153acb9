"""What TensorRT-RTX makes of a graph, to hold the Q/DQ linter against."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx
import tensorrt_rtx as trt

from exporter.engines.layers import layers_from_log
from exporter.lowering.qdq.lint import QdqReport, int8_convolutions, lint
from runtimes.nvidia.log import log_of

KERNELS = ("correlation", "deconv")


@dataclass(frozen=True)
class Verdict:
    """Why TensorRT-RTX refuses a graph (empty: it takes it); what each convolution's kernel reads, by new node name."""

    refusal: str
    reads: dict[str, set[str]]


def judged(model: onnx.ModelProto, target: str = "SM86") -> Verdict:
    """Parse and build; nodes are named `n<place>` first, since strangers' have no names."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for place, node in enumerate(named.graph.node):
        node.name = f"n{place}"
    log = log_of(trt)
    with log.recording() as recording:
        builder = trt.Builder(log.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log.logger)
        if not parser.parse(named.SerializeToString()):
            return Verdict(parser.get_error(0).desc() or "refused", {})
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
        plan = builder.build_serialized_network(network, config)
        if plan is None or plan.nbytes == 0:
            return Verdict(recording.reason or "refused", {})
    reads: defaultdict[str, set[str]] = defaultdict(set)
    for layer in layers_from_log(recording.text):
        for name in layer.nodes if layer.kind in KERNELS else ():
            reads[name].add(layer.reads[0])
    return Verdict("", dict(reads))


def held_against(model: onnx.ModelProto) -> QdqReport:
    """The linter's report, which agrees with TensorRT-RTX: refused or not, and every convolution INT8 or not."""
    report, verdict = lint(model), judged(model)
    assert report is not None
    assert report.refused == bool(verdict.refusal), (verdict.refusal, report.findings)
    if not verdict.refusal:
        told = {f"n{place}": is_int8 for place, is_int8 in int8_convolutions(model).items()}
        assert told == {name: verdict.reads[name] == {"int8"} for name in told}, report.findings
    return report
