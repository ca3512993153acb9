"""How far a bundle's values drift from the FP32 program's, block by block: from PyTorch to the FP32 ONNX graph to the lowered graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.hybrid import apart
from exporter.inner import REMEDY, exposed, matched, program_values, rounded_names
from exporter.original import Original, original_of, reference_inputs
from exporter.qdq.blocks import blocks
from runtimes.budget import Budget
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.parity import LARGEST_ERROR, LARGEST_SQNR_DB, sqnr_db

MOST_IMAGES = 32
"""The output of a ResNet-152's blocks at 224 pixels is 53 MB an image, and those of two graphs are held at once."""
ONNX, FILE, SIMULATION, ALONE = "onnx fp32", "model.onnx", "simulation", "alone"


@dataclass(frozen=True)
class Deviation:
    """What a block gives, over all images, against what it should give.

    Attributes:
        relative_error: the largest difference, relative to the largest value; `LARGEST_ERROR` where something is not finite.
        sqnr_db: signal to noise in dB; `-LARGEST_SQNR_DB` where something is not finite.
    """

    relative_error: float
    sqnr_db: float


@dataclass(frozen=True)
class Stage:
    """One way to compute the network, and how far each of its blocks is off.

    Attributes:
        name: `onnx fp32`, the FP32 ONNX graph; `model.onnx`, the lowered graph as ONNX Runtime runs it; `simulation`, the lowered graph rounded
            as a device rounds. In these three a block is fed what the one before it gives, so that errors add up, and held against the
            program. `alone` is the simulation (or the file, where there is none) with every block fed what the FP32 graph feeds it, and held
            against that graph, so that each shows its own error alone, and with it that of rounding what it gives. (What INT8 takes off the
            classifier's bias, to make up for the errors of the blocks before, is no error of the head: that graph has it too.)
        blocks: one for each block, in order.
        beyond: the first block that is beyond the budget; None where all are inside.
    """

    name: str
    blocks: tuple[Deviation, ...]
    beyond: str | None


@dataclass(frozen=True)
class Drift:
    """The way from PyTorch to the lowered graph, block by block.

    Attributes:
        images: how many were fed.
        blocks: their names: the stem, the residual blocks and the head, in order; of the head one for each output that it gives.
        budget: its `max_relative_error` and `min_sqnr_db`, which are for the outputs, are held against each block too.
        stages: see `Stage`.
        out_of_line: the first block whose own error, all alone, is beyond what the budget allows the whole network; None where there is
            none, as in a network that is out of budget because many blocks add a little each.
        noisiest: the block whose signal-to-noise ratio is lowest all alone. There is always one: it need not be at fault.
        noisiest_db: that ratio.
    """

    images: int
    blocks: tuple[str, ...]
    budget: Budget
    stages: tuple[Stage, ...]
    out_of_line: str | None
    noisiest: str
    noisiest_db: float


def drift_of(bundle: Bundle, inputs: NDArray[Any], budget: Budget | None = None) -> Drift:
    """Follow a bundle's values from its program to its lowered graph.

    Args:
        inputs: (images, ...), as the bundle's graph takes them; the first `MOST_IMAGES` are used.
        budget: in place of the bundle's own.

    Raises:
        BundleError: no `reference.pt2`, or one that `model.onnx` was not made from.
        PlanError: the program's blocks and the graph's cannot be matched without guessing.
        BackendUnavailable: this onnxruntime would run `model.onnx` wrongly.
    """
    inputs = inputs[:MOST_IMAGES]
    return drift_between(original_of(bundle, inputs), inputs, reference_inputs(bundle, inputs), budget or bundle.manifest.parity.budget)


def drift_between(original: Original, inputs: NDArray[Any], outside: NDArray[Any], budget: Budget) -> Drift:
    """Follow the values of both sides of a lowering; `inputs` are what the graphs take, `outside` what the program takes in their place.

    Raises:
        PlanError: as above.
    """
    module = original.program.module()
    nodes = matched(module, original.graph.graph)
    names = tuple(block.name for block in blocks(original.graph.graph) for _ in block.ends)
    exact = program_values(module, nodes.values(), outside)
    expected = [exact[node] for node in nodes.values()]
    stages = []
    for name, (model, tensors) in _ways(original, list(nodes)).items():
        if name == ALONE:
            expected = list(exposed(original.corrected, tensors, inputs).values())
        found = exposed(model, tensors, inputs).values()
        each = tuple(_deviation(*pair) for pair in zip(expected, found, strict=True))
        stages.append(Stage(name, each, next((block for block, one in zip(names, each, strict=True) if _is_beyond(one, budget)), None)))
    alone = stages[-1]
    noisiest, worst = min(zip(names, alone.blocks, strict=True), key=lambda pair: pair[1].sqnr_db)
    return Drift(len(inputs), names, budget, tuple(stages), alone.beyond, noisiest, worst.sqnr_db)


def _ways(original: Original, tensors: list[str]) -> Mapping[str, tuple[Any, list[str]]]:
    """The stages: a graph each, and what it calls the ends of the blocks."""
    ways = {ONNX: (original.graph, tensors)}
    if original.runs:
        ways[FILE] = (original.lowered, tensors)
    if original.simulation is not None:
        ways[SIMULATION] = (original.simulation, rounded_names(original.simulation.graph, tensors))
    return {**ways, ALONE: (apart(original.corrected, original.simulation or original.lowered, tensors), tensors)}


def _deviation(expected: NDArray[Any], found: NDArray[Any]) -> Deviation:
    if expected.shape != found.shape:
        raise PlanError(f"expected a block's output of shape {expected.shape}, as in the program, got {found.shape}; {REMEDY}")
    if not np.isfinite(found).all():
        return Deviation(LARGEST_ERROR, -LARGEST_SQNR_DB)
    got = found.astype(np.float32, copy=False)
    largest = float(np.abs(expected).max()) or 1.0
    return Deviation(float(np.abs(got - expected).max()) / largest, sqnr_db(expected, got))


def _is_beyond(one: Deviation, budget: Budget) -> bool:
    too_large = budget.max_relative_error is not None and one.relative_error > budget.max_relative_error
    return too_large or (budget.min_sqnr_db is not None and one.sqnr_db < budget.min_sqnr_db)
