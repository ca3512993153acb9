"""Measure how far a bundle's values drift from its FP32 reference, block by block, in the FP32 graph and the lowered
one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.graph.blocks import blocks
from exporter.graph.probe import alone_values, inner_tensors, rounded_names
from exporter.verification.blocks.both_sides import BothSides, both_sides_of, reference_inputs
from exporter.verification.blocks.findings import Deviation, Drift, Stage, budget_of_one_block
from exporter.verification.blocks.program import REMEDY, match_blocks
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import tensor_sqnr_db
from runtimes.parity.measures import LARGEST_ERROR, LARGEST_SQNR_DB

MOST_IMAGES = 32
"""The outputs of a ResNet-152's blocks at 224 pixels are 53 MB an image, and those of two graphs are held at once."""
ONNX, FILE, SIMULATION, ALONE = "onnx fp32", "model.onnx", "simulation", "alone"


def drift_of_bundle(bundle: Bundle, inputs: NDArray[Any], budget: Budget | None = None) -> Drift:
    """Measure the drift of a bundle, from its program to its lowered graph.

    Args:
        inputs: (images, ...), as the bundle's graph takes them; the first `MOST_IMAGES` are used.
        budget: in place of the bundle's own.

    Raises:
        BundleError: no reference, or one that `model.onnx` was not made from.
        PlanError: the program's blocks and the graph's cannot be matched without guessing.
        BackendUnavailable: this onnxruntime would run `model.onnx` wrongly.
    """
    inputs = inputs[:MOST_IMAGES]
    both = both_sides_of(bundle, inputs)
    return drift_between(both, inputs, reference_inputs(bundle, inputs), budget or bundle.manifest.budget)


def drift_between(both: BothSides, inputs: NDArray[Any], program_inputs: NDArray[Any], budget: Budget) -> Drift:
    """Measure the drift between both sides of a lowering.

    Args:
        inputs: (images, ...), as the graphs take them.
        program_inputs: float32 (images, channels, height, width), the same as the program takes them.

    Raises:
        PlanError: the program's blocks and the graph's cannot be matched without guessing.
    """
    nodes = match_blocks(both.reference.outline(), both.graph.graph, ends_alike=both.reference.ends_alike)
    names = tuple(block.name for block in blocks(both.graph.graph) for _ in block.ends)
    exact = both.reference.values(nodes.values(), program_inputs)
    divided = [_divided(exact[node], both.factors.get(name)) for name, node in nodes.items()]
    stages = []
    for name, expected, found in _values_by_stage(both, list(nodes), divided, inputs):
        each = tuple(_deviation(*values) for values in zip(nodes, expected, found, strict=True))
        held = budget_of_one_block(budget) if name == ALONE else budget
        beyond = next((block for block, one in zip(names, each, strict=True) if _is_beyond(one, held)), None)
        stages.append(Stage(name, each, beyond))
    alone, *others = stages
    noisiest, worst = min(zip(names, alone.blocks, strict=True), key=lambda pair: pair[1].sqnr_db)
    return Drift(len(inputs), names, budget, (*others, alone), alone.beyond, noisiest, worst.sqnr_db)


class _StageValues(NamedTuple):
    """A stage (see `Stage.name`): the values at the ends of the blocks, expected and found."""

    name: str
    expected: Iterable[NDArray[Any]]
    found: Iterable[NDArray[Any]]


def _values_by_stage(
    both: BothSides, tensors: Sequence[str], program: Sequence[NDArray[Any]], inputs: NDArray[Any]
) -> Iterator[_StageValues]:
    """The blocks alone first: the FP32 graph runs beside them, and is what comes next.

    Args:
        tensors: at the ends of the blocks.
        program: their values in the program.
    """
    exact, alone = alone_values(both.corrected, both.simulation or both.lowered, tensors, inputs)
    yield _StageValues(ALONE, exact.values(), alone.values())
    del alone
    if both.corrected is not both.graph:
        exact = inner_tensors(both.graph, tensors, inputs)
    yield _StageValues(ONNX, program, exact.values())
    del exact
    if both.runs:
        yield _StageValues(FILE, program, inner_tensors(both.lowered, tensors, inputs).values())
    if both.simulation is not None:
        names = rounded_names(both.simulation.graph, tensors)
        yield _StageValues(SIMULATION, program, inner_tensors(both.simulation, names, inputs).values())


def _divided(values: NDArray[Any], factors: NDArray[Any] | None) -> NDArray[Any]:
    """The program's values, (images, channels, ...), as an equalized graph has them."""
    return values if factors is None else values / factors.reshape(1, -1, *[1] * (values.ndim - 2))


def _deviation(name: str, expected: NDArray[Any], found: NDArray[Any]) -> Deviation:
    if expected.shape != found.shape:
        raise PlanError(
            f"expected a block's output of shape {expected.shape}, as in the program, got {found.shape}; {REMEDY}"
        )
    if not np.isfinite(found).all():
        return Deviation(LARGEST_ERROR, -LARGEST_SQNR_DB)
    got = found.astype(np.float32, copy=False)
    largest = float(np.abs(expected).max()) or 1.0
    return Deviation(float(np.abs(got - expected).max()) / largest, tensor_sqnr_db(name, expected, got))


def _is_beyond(one: Deviation, budget: Budget) -> bool:
    too_large = budget.max_relative_error is not None and one.relative_error > budget.max_relative_error
    return too_large or (budget.min_sqnr_db is not None and one.sqnr_db < budget.min_sqnr_db)
