"""Engines of bundles, built by TensorRT-RTX as a user's build does, without a GPU."""

from __future__ import annotations

from typing import NamedTuple

from exporter.engines.builders import BuildOptions, BuiltNetwork, Job, tensorrt_rtx
from exporter.engines.layers import EngineLayer, check_precision, layer_facts
from runtimes import Bundle
from runtimes.nvidia.engine_file import LayerFacts
from runtimes.specs import BatchRange


class CheckedBuild(NamedTuple):
    """What was built, its layers, and in which types they run."""

    built: BuiltNetwork
    layers: list[EngineLayer]
    facts: LayerFacts


def build_in_precision(bundle: Bundle, batch: BatchRange, in_float: frozenset[str] = frozenset()) -> CheckedBuild:
    """Build for sm86, and check that every convolution but those `in_float` runs in the bundle's precision."""
    precision = bundle.manifest.precision
    options = BuildOptions(targets=("sm86",))
    job = Job(bundle.file("model.onnx").read_bytes(), precision, bundle.manifest.inputs, batch, options)
    built, layers = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    facts = layer_facts(layers, built.convolutions, precision, in_float)
    check_precision(facts, precision)
    return CheckedBuild(built, layers, facts)
