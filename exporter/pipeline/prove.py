"""Prove that a bundle's files compute what the FP32 PyTorch program does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.probe import exposed, noisiest
from exporter.lowering.precisions._cast import wider_precisions
from exporter.pipeline.image_count import ImageCount
from exporter.pipeline.images import Graphs, Images, Outputs, Proof
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.base import Runtime
from runtimes.errors import LowerError, ParityError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import Answered, Evidence, answered
from runtimes.progress import Progress, silent
from runtimes.specs import BatchRange

REFERENCE, SIMULATION = "pytorch", "simulation"
SIMULATED_IMAGES = 8
"""Where no labels are known: errors of 8 images' logits are thousands of figures, and the simulation costs twice a plain run."""
SIMULATED_BATCH = 32
NOT_FINITE = "gives a picture of one colour an answer that is no number, where the reference gives one; look for a division by zero in the network"


def prove(
    folder: Path,
    images: Images,
    graphs: Graphs,
    *,
    budget: Budget,
    batch: BatchRange,
    backends: Sequence[str],
    progress: Progress = silent,
) -> Proof:
    """Run `reference.pt2` and, on each backend, its model file, over the same images.

    The smallest batch and the one in between run on the first images, the largest on all of them. The simulation
    runs on all images with labels, or on the first few without; where no backend runs the file, it runs as a backend
    would, and onnx's checker reads the file. Top-1 is that of the simulation where there is one.

    Of pictures of one colour it is asked that the answer is finite where the reference's is.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
        ParityError: a backend is out of budget; carries the report.
    """
    simulation = graphs.simulation
    if not backends and simulation is None:
        raise ValueError("expected a backend or a simulation to prove the file with, got neither")
    count = ImageCount("prove", len(images.fed), 1 + len(backends) + (simulation is not None), progress)
    with count(_opened(folder, REFERENCE)) as runtime:
        # By their place: the program alone does not know what its outputs are called.
        names = [value.name for value in graphs.original.graph.output]
        reference = dict(zip(names, _outputs(runtime, images.inputs, batch.opt).values(), strict=True))
        plain = _Plain(images.plain, runtime, batch)
    evidence = Evidence(images.fed, reference, images.labels)
    answers: dict[str, Answered] = {}
    for backend in backends:
        with count(_opened(folder, backend)) as runtime:
            answers[backend] = answered(evidence, backend, runtime, budget, batch)
            plain.ask(backend, runtime)
    if simulation is not None:
        if not backends:
            onnx.checker.check_model(folder / OnnxRuntime.FILE, full_check=True)
        answers[SIMULATION] = _simulated(simulation, evidence, budget, None if backends else batch, count)
        plain.ask_simulation(simulation)
    compared = {name: one.report.backends[name] for name, one in answers.items()}
    report = ParityReport(all(one.ok for one in answers.values()), len(images.fed), batch.checked, compared, budget)
    said = [f"{name}: {', '.join(limit.text for limit in one.limits if not limit.ok)}" for name, one in answers.items() if not one.ok]
    if said:
        where = worst_block(graphs, images.fed[:SIMULATED_IMAGES])
        raise ParityError(f"parity is out of budget over {len(images.fed)} images, {'; '.join(said)}{where}; no bundle was written", report)
    if plain.not_finite:
        raise ParityError(f"{' and '.join(plain.not_finite)} {NOT_FINITE}; no bundle was written", report)
    return Proof(reference, answers, report, list(answers.values())[-1].accuracy)


class _Plain:
    """Asks for pictures of one colour, and keeps who gave no number for one where the reference did."""

    def __init__(self, images: Images | None, reference: Runtime, batch: BatchRange) -> None:
        self.not_finite: list[str] = []
        self.inputs: NDArray[Any] | None = None
        if images is None:
            return
        size = max(batch.min, min(len(images.inputs), batch.max))
        places = np.resize(np.arange(len(images.inputs)), -(-len(images.inputs) // size) * size)
        self.size, self.inputs = size, images.fed[places]
        self.expected = [np.isfinite(values) for values in _outputs(reference, images.inputs[places], size).values()]

    def ask(self, name: str, runtime: Runtime) -> bool:
        """Is every number that the reference gives a number here too?"""
        if self.inputs is None:
            return True
        found = _outputs(runtime, self.inputs, self.size).values()
        is_right = all(np.isfinite(values[finite]).all() for values, finite in zip(found, self.expected, strict=True))
        if not is_right:
            self.not_finite.append(name)
        return is_right

    def ask_simulation(self, simulation: onnx.ModelProto) -> None:
        """
        Raises:
            LowerError: names the tensor that is no number there.
        """
        if self.inputs is None:
            return
        with OnnxRuntime.from_bytes(simulation.SerializeToString()) as runtime:
            is_right = self.ask(SIMULATION, runtime)
        if not is_right:
            _name_overflow(simulation, self.inputs[: self.size], "for a picture of one colour")


def _simulated(simulation: onnx.ModelProto, evidence: Evidence, budget: Budget, batch: BatchRange | None, count: ImageCount) -> Answered:
    """The simulation's answers: at each batch as a backend's where one is given, else in one pass, over few images where no labels are known.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
    """
    if batch is None and evidence.labels is None:
        evidence = Evidence(evidence.inputs[:SIMULATED_IMAGES], {name: values[:SIMULATED_IMAGES] for name, values in evidence.outputs.items()})
    size = min(len(evidence.inputs), SIMULATED_BATCH)
    with count(OnnxRuntime.from_bytes(simulation.SerializeToString())) as runtime:
        answer = answered(evidence, SIMULATION, runtime, budget, batch or BatchRange(size, size, size))
    if not answer.report.backends[SIMULATION].finite:
        _name_overflow(simulation, evidence.inputs[:SIMULATED_IMAGES])
    return answer


def worst_block(graphs: Graphs, inputs: NDArray[Any]) -> str:
    """Which block, the stem and the head among them, adds the most noise by itself, and what to try; empty without a simulation."""
    if graphs.simulation is None:
        return ""
    worst, ratio = noisiest(graphs.original, graphs.simulation, inputs)
    calibrated = any(node.op_type == "QuantizeLinear" for node in graphs.simulation.graph.node)
    remedy = "try another --calibrator, more --data like what the model sees, or --fp16" if calibrated else "try --fp32"
    if _narrow_type(graphs.simulation) == onnx.TensorProto.BFLOAT16:
        remedy = "try --fp16 or --fp32"
    return f"; {worst} adds the most noise, an SQNR of {ratio:.1f} dB by itself; {remedy}"


def _opened(folder: Path, backend: str) -> Runtime:
    runtime = backend_class(backend)
    return runtime.open(folder / runtime.FILE)


def _outputs(runtime: Runtime, inputs: NDArray[Any], size: int) -> Outputs:
    """Outputs for all inputs, fed `size` at a time."""
    source = runtime.inputs[0].name
    parts = [runtime.run({source: inputs[start : start + size]}) for start in range(0, len(inputs), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _name_overflow(simulation: onnx.ModelProto, inputs: NDArray[Any], where: str = "on real images") -> None:
    """Raise LowerError for the first tensor of the simulation that is not finite."""
    # Each rounded tensor is read as its `.wide` copy: numpy has no BF16.
    names = [name for node in simulation.graph.node if node.op_type == "Cast" for name in node.output if name.endswith(".wide")]
    values = exposed(simulation, names, inputs)
    for name in names:
        if not np.isfinite(values[name]).all():
            tensor, wider = name.removesuffix(".wide"), wider_precisions(_narrow_type(simulation))
            raise LowerError(f"the values of '{tensor}' are beyond the precision's range {where}; export in {wider}")


def _narrow_type(simulation: onnx.ModelProto) -> int:
    """The type that a simulation's first cast, that of the input, rounds to."""
    types = (attribute.i for node in simulation.graph.node if node.op_type == "Cast" for attribute in node.attribute)
    return next(int(kind) for kind in types if kind != onnx.TensorProto.FLOAT)
