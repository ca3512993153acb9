"""Inner tensors of an ONNX graph, and the noise of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.blocks import blocks
from exporter.graph.mixed import apart
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.parity.measures import LARGEST_SQNR_DB, sqnr_db


def exposed(model: onnx.ModelProto, names: Sequence[str], inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inner tensors of a graph by name, as ONNX Runtime computes them on the CPU; the graph is changed by no more than
    these outputs."""
    with OnnxRuntime.from_bytes(with_outputs(model, names).SerializeToString()) as runtime:
        found = runtime.run({runtime.inputs[0].name: inputs})
    return {name: found[name] for name in names}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a graph that gives these tensors too."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return result


def ends_of(graph: onnx.GraphProto) -> dict[str, str]:
    """The tensors at the ends of a float graph's blocks, in order, each with its block's name."""
    return {tensor: block.name for block in blocks(graph) for tensor in block.ends}


def rounded_names(simulation: onnx.GraphProto, tensors: Sequence[str]) -> list[str]:
    """Where a simulation holds these tensors of the float graph, rounded and in FP32; an output is so as it is."""
    produced, given = (
        {name for node in simulation.node for name in node.output},
        {value.name for value in simulation.output},
    )
    return [f"{name}.wide" if f"{name}.wide" in produced and name not in given else name for name in tensors]


def noisiest(original: onnx.ModelProto, simulation: onnx.ModelProto, inputs: NDArray[Any]) -> tuple[str, float]:
    """The block, the stem and the head among them, whose own error is largest where each is fed what is exact, and its
    signal to noise in dB."""
    ends = ends_of(original.graph)
    exact = exposed(original, list(ends), inputs)
    found = exposed(apart(original, simulation, list(ends)), list(ends), inputs)
    ratios = [sqnr_db(exact[end], found[end]) if np.isfinite(found[end]).all() else -LARGEST_SQNR_DB for end in ends]
    place = int(np.argmin(ratios))
    return list(ends.values())[place], ratios[place]
