"""Prove that a bundle's files compute what the FP32 PyTorch program does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.inner import ends_of, exposed, largest_fall, ratios_of
from exporter.precisions._cast import wider_precisions
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.base import Runtime
from runtimes.errors import LowerError, ParityError
from runtimes.parity import LOGITS, Accuracy, Budget, Comparison, ParityReport, accuracy, compare_outputs
from runtimes.specs import BatchRange

Outputs = dict[str, NDArray[Any]]
REFERENCE, SIMULATION = "pytorch", "simulation"
SIMULATED_IMAGES = 8
"""Where no labels are known: errors of 8 images' logits are thousands of figures, and the simulation costs twice a plain run."""


@dataclass(frozen=True)
class Images:
    """What to feed: float32 (images, channels, height, width), and int64 labels (images,) where they are known.

    For a graph with its preprocessing inside, `pixels` are what the inputs were made from, uint8 (images, height, width, channels): the graph is
    fed those, and the reference the inputs.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    pixels: NDArray[np.uint8] | None = None

    @property
    def fed(self) -> NDArray[Any]:
        """What the graph takes."""
        return self.inputs if self.pixels is None else self.pixels


@dataclass(frozen=True)
class Graphs:
    """The simplified FP32 graph, and the lowered one rewritten to round on a CPU as a device does (None where a CPU does so anyway)."""

    original: onnx.ModelProto
    simulation: onnx.ModelProto | None


@dataclass(frozen=True)
class Proof:
    """What the reference answered, float32 by output's name, and the verdict."""

    outputs: Outputs
    report: ParityReport
    accuracy: Accuracy | None


def prove(folder: Path, images: Images, graphs: Graphs, *, budget: Budget, batch: BatchRange, backends: Sequence[str]) -> Proof:
    """Run `reference.pt2` and, on each backend, its model file, over the same images.

    The smallest batch and the one in between run on the first images, the largest on all of them. The simulation
    runs on all images with labels, or on the first few without; where no backend runs the file, it runs as a backend
    would, and onnx's checker reads the file. Top-1 is that of the simulation where there is one.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
        ParityError: a backend is out of budget; carries the report.
    """
    inputs, simulation = images.fed, graphs.simulation
    if not backends and simulation is None:
        raise ValueError("expected a backend or a simulation to prove the file with, got neither")
    with _opened(folder, REFERENCE) as runtime:
        # By their place: the program alone does not know what its outputs are called.
        names = [value.name for value in graphs.original.graph.output]
        reference = dict(zip(names, _outputs(runtime, images.inputs, batch.opt).values(), strict=True))
    compared: dict[str, Comparison] = {}
    for backend in backends:
        with _opened(folder, backend) as runtime:
            parts = _at_each_batch(runtime, inputs, batch)
        compared[backend] = _compared(reference, parts, budget)
    if simulation is not None:
        if not backends:
            onnx.checker.check_model(folder / OnnxRuntime.FILE, full_check=True)
        with OnnxRuntime.from_bytes(simulation.SerializeToString()) as runtime:
            if backends:
                parts = [_outputs(runtime, inputs if images.labels is not None else inputs[:SIMULATED_IMAGES], batch.max)]
            else:
                parts = _at_each_batch(runtime, inputs, batch)
        if not all(np.isfinite(values).all() for part in parts for values in part.values()):
            _name_overflow(simulation, inputs[:SIMULATED_IMAGES])
        compared[SIMULATION] = _compared(reference, parts, budget)
    report = ParityReport(all(one.ok for one in compared.values()), len(inputs), batch.checked, compared, budget)
    measured = accuracy(reference[LOGITS], parts[-1][LOGITS], images.labels) if images.labels is not None else None
    said = [f"{name}: {', '.join(one.violations)}" for name, one in compared.items() if not one.ok]
    if measured is not None and budget.max_accuracy_drop is not None and measured.reference_top1 - measured.top1 > budget.max_accuracy_drop:
        said.append(f"top-1 fell from {measured.reference_top1:.2%} to {measured.top1:.2%}, allowed {budget.max_accuracy_drop:.2%}")
    if said:
        where = worst_block(graphs, inputs[:SIMULATED_IMAGES])
        raise ParityError(f"parity is out of budget over {len(inputs)} images, {'; '.join(said)}{where}; no bundle was written", report)
    return Proof(reference, report, measured)


def worst_block(graphs: Graphs, inputs: NDArray[Any]) -> str:
    """Which residual block adds the most noise to the simulation, and what to try; empty without one.

    Read off the blocks' ends: the largest fall of the signal-to-noise ratio from one to the next.
    """
    if graphs.simulation is None:
        return ""
    ratios, names = ratios_of(graphs.original, graphs.simulation, inputs), list(ends_of(graphs.original.graph).values())
    if len(names) < 2:
        return ""
    worst = names[largest_fall(list(ratios.values()))]
    calibrated = any(node.op_type == "QuantizeLinear" for node in graphs.simulation.graph.node)
    remedy = "try another --calibrator, more --data like what the model sees, or --fp16" if calibrated else "try --fp32"
    if _narrow_type(graphs.simulation) == onnx.TensorProto.BFLOAT16:
        remedy = "try --fp16 or --fp32"
    return f"; the signal-to-noise ratio falls most in block {worst}; {remedy}"


def _opened(folder: Path, backend: str) -> Runtime:
    runtime = backend_class(backend)
    return runtime.open(folder / runtime.FILE)


def _at_each_batch(runtime: Runtime, inputs: NDArray[Any], batch: BatchRange) -> list[Outputs]:
    """Outputs for each batch size that is checked; for the largest, which comes last, of all inputs."""
    return [_outputs(runtime, inputs if size == batch.max else inputs[:size], size) for size in batch.checked]


def _compared(reference: Mapping[str, NDArray[Any]], parts: Sequence[Outputs], budget: Budget) -> Comparison:
    """All parts, each of which answers the first inputs, against the reference's outputs."""
    expected = {name: np.concatenate([values[: len(part[name])] for part in parts]) for name, values in reference.items()}
    return compare_outputs(expected, _joined(parts), budget)


def _outputs(runtime: Runtime, inputs: NDArray[Any], size: int) -> Outputs:
    """Outputs for all inputs, fed `size` at a time."""
    name = runtime.inputs[0].name
    return _joined([runtime.run({name: inputs[start : start + size]}) for start in range(0, len(inputs), size)])


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _name_overflow(simulation: onnx.ModelProto, inputs: NDArray[Any]) -> None:
    """Raise LowerError for the first tensor of the simulation that is not finite."""
    # Each rounded tensor is read as its `.wide` copy: numpy has no BF16.
    names = [name for node in simulation.graph.node if node.op_type == "Cast" for name in node.output if name.endswith(".wide")]
    values = exposed(simulation, names, inputs)
    for name in names:
        if not np.isfinite(values[name]).all():
            tensor, wider = name.removesuffix(".wide"), wider_precisions(_narrow_type(simulation))
            raise LowerError(f"the values of '{tensor}' are beyond the precision's range on real images; export in {wider}")


def _narrow_type(simulation: onnx.ModelProto) -> int:
    """The type that a simulation's first cast, that of the input, rounds to."""
    types = (attribute.i for node in simulation.graph.node if node.op_type == "Cast" for attribute in node.attribute)
    return next(int(kind) for kind in types if kind != onnx.TensorProto.FLOAT)
