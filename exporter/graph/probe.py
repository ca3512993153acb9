"""Run an ONNX graph for its inner tensors, and find its noisiest blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from calibration.collect import with_free_batch
from exporter.graph.blocks import blocks
from exporter.graph.mixed import ALONE, EXACT, with_exact_block_inputs
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.cores import usable_cores
from runtimes.parity.compare import tensor_sqnr_db
from runtimes.parity.measures import LARGEST_SQNR_DB


class BlockNoise(NamedTuple):
    """A block's name, and the signal-to-noise ratio in dB of its output when its input is exact."""

    block: str
    sqnr_db: float


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session of onnxruntime on the CPU for any batch size, which runs Q/DQ pairs as they are written and gives its
    memory back after each run."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cores()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(with_free_batch(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_session(session: ort.InferenceSession, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs of a session, by name."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def inner_tensors(model: onnx.ModelProto, names: Sequence[str], inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Run a graph in ONNX Runtime on the CPU for the inner tensors `names`, which become outputs of it."""
    with OnnxRuntime.from_bytes(with_outputs(model, names).SerializeToString()) as runtime:
        found = runtime.run({runtime.inputs[0].name: inputs})
    return {name: found[name] for name in names}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a graph that returns these tensors as well; the graph itself where it returns them already."""
    given = {value.name for value in model.graph.output}
    if given.issuperset(names):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return result


def block_ends(graph: onnx.GraphProto) -> dict[str, str]:
    """The tensors that leave the blocks of a float graph, in order: tensor -> the block's name."""
    return {tensor: block.name for block in blocks(graph) for tensor in block.ends}


def rounded_names(simulation: onnx.GraphProto, tensors: Sequence[str]) -> list[str]:
    """The names under which a simulation holds these tensors of the float graph, rounded and in FP32."""
    produced, given = (
        {name for node in simulation.node for name in node.output},
        {value.name for value in simulation.output},
    )
    return [f"{name}.wide" if f"{name}.wide" in produced and name not in given else name for name in tensors]


class AloneValues(NamedTuple):
    """The tensors at the ends of blocks, by name: as the FP32 graph makes them, and as each lowered block makes them
    from exact FP32 input."""

    exact: dict[str, NDArray[Any]]
    alone: dict[str, NDArray[Any]]


def alone_values(
    original: onnx.ModelProto, lowered: onnx.ModelProto, ends: Sequence[str], inputs: NDArray[Any]
) -> AloneValues:
    """Run each lowered block on exact FP32 input, and the FP32 graph beside it (see `with_exact_block_inputs`)."""
    model = with_exact_block_inputs(original, lowered, ends)
    found = inner_tensors(model, [f"{kind}{name}" for kind in (EXACT, ALONE) for name in ends], inputs)
    return AloneValues(*({name: found[f"{kind}{name}"] for name in ends} for kind in (EXACT, ALONE)))


def noisiest_blocks(original: onnx.ModelProto, simulation: onnx.ModelProto, inputs: NDArray[Any]) -> list[BlockNoise]:
    """The blocks, stem and head included, the largest error of its own first: each is fed exact FP32 input."""
    ends = block_ends(original.graph)
    exact, found = alone_values(original, simulation, list(ends), inputs)
    ratios: dict[str, float] = {}
    for end, block in ends.items():
        is_finite = np.isfinite(found[end]).all()
        ratio = tensor_sqnr_db(end, exact[end], found[end]) if is_finite else -LARGEST_SQNR_DB
        ratios[block] = min(ratio, ratios.get(block, LARGEST_SQNR_DB))
    return sorted((BlockNoise(*pair) for pair in ratios.items()), key=lambda one: one.sqnr_db)
