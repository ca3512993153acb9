"""Prove that a bundle's files compute what the FP32 PyTorch program does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.probe import inner_tensors, noisiest_block
from exporter.lowering.precisions._cast import wider_precisions
from exporter.pipeline.image_count import ImageCount
from exporter.pipeline.images import Candidate, Graphs, Images, Outputs, Proof
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.base import Runtime
from runtimes.errors import LowerError, ParityError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import BackendParity, Evidence, compare_backend
from runtimes.progress import Progress, silent
from runtimes.specs import BatchRange

REFERENCE, SIMULATION = "pytorch", "simulation"
SIMULATED_IMAGES = 8
"""Without labels: their logits already give thousands of errors, and a simulation costs twice a plain run."""
SIMULATED_BATCH = 32
NOT_FINITE = (
    "gives a picture of one colour an answer that is no number, where the reference gives one; "
    "look for a division by zero in the network"
)


def prove(candidate: Candidate, images: Images, *, budget: Budget, progress: Progress = silent) -> Proof:
    """Run `reference.pt2` and, on each backend, its model file, over the same images, and compare the answers.

    The largest batch runs on all images, the smaller ones on the first. The simulation runs on all images where labels
    are known, on the first few elsewhere. Where no backend runs the file, the simulation runs at each batch size, as a
    backend would, and onnx's checker reads the file. Accuracy is that of the simulation where there is one.

    For images of one colour, every answer must be finite where the reference's is.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
        ParityError: a backend is out of budget; carries the report.
    """
    folder, graphs, batch, backends = candidate.folder, candidate.graphs, candidate.batch, candidate.backends
    simulation = graphs.simulation
    if not backends and simulation is None:
        raise ValueError("expected a backend or a simulation to prove the file with, got neither")
    count = ImageCount("prove", len(images.fed), 1 + len(backends) + (simulation is not None), progress)
    with count(_open(folder, REFERENCE)) as runtime:
        # In their order: the program alone does not know what its outputs are called.
        names = [value.name for value in graphs.original.graph.output]
        reference = dict(zip(names, _outputs(runtime, images.inputs, batch.opt).values(), strict=True))
        plain = _FiniteCheck(images.plain, runtime, batch)
    evidence = Evidence(images.fed, reference, images.labels)
    answers: dict[str, BackendParity] = {}
    for backend in backends:
        with count(_open(folder, backend)) as runtime:
            answers[backend] = compare_backend(evidence, backend, runtime, budget, batch)
            plain.check(backend, runtime)
    if simulation is not None:
        if not backends:
            onnx.checker.check_model(folder / OnnxRuntime.FILE, full_check=True)
        answers[SIMULATION] = _run_simulation(simulation, evidence, budget, None if backends else batch, count)
        plain.check_simulation(simulation)
    compared = {name: one.report.backends[name] for name, one in answers.items()}
    report = ParityReport(all(one.ok for one in answers.values()), len(images.fed), batch.proof_sizes, compared, budget)
    broken = {name: [limit.text for limit in one.limits if not limit.ok] for name, one in answers.items() if not one.ok}
    if broken:
        limits = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in broken.items())
        where = noisiest_block_text(graphs, images.fed[:SIMULATED_IMAGES])
        raise ParityError(
            f"parity is out of budget over {len(images.fed)} images, {limits}{where}; no bundle was written", report
        )
    if plain.not_finite:
        raise ParityError(f"{' and '.join(plain.not_finite)} {NOT_FINITE}; no bundle was written", report)
    return Proof(reference, answers, report, list(answers.values())[-1].accuracy)


class _FiniteCheck:
    """Feeds images of one colour, and keeps which backends gave NaN or infinity where the reference did not.

    Attributes:
        not_finite: the names of those backends.
    """

    def __init__(self, images: Images | None, reference: Runtime, batch: BatchRange) -> None:
        self.not_finite: list[str] = []
        self.inputs: NDArray[Any] | None = None
        if images is None:
            return
        size = max(batch.min, min(len(images.inputs), batch.max))
        places = np.resize(np.arange(len(images.inputs)), -(-len(images.inputs) // size) * size)
        self.size, self.inputs = size, images.fed[places]
        self.expected = [np.isfinite(values) for values in _outputs(reference, images.inputs[places], size).values()]

    def check(self, name: str, runtime: Runtime) -> bool:
        """Is every value finite that is finite in the reference?"""
        if self.inputs is None:
            return True
        found = _outputs(runtime, self.inputs, self.size).values()
        is_right = all(np.isfinite(values[finite]).all() for values, finite in zip(found, self.expected, strict=True))
        if not is_right:
            self.not_finite.append(name)
        return is_right

    def check_simulation(self, simulation: onnx.ModelProto) -> None:
        """Check the simulation, whose tensors can be looked into.

        Raises:
            LowerError: names the first tensor that is not finite.
        """
        if self.inputs is None:
            return
        with OnnxRuntime.from_bytes(simulation.SerializeToString()) as runtime:
            is_right = self.check(SIMULATION, runtime)
        if not is_right:
            _name_overflow(simulation, self.inputs[: self.size], "for a picture of one colour")


def _run_simulation(
    simulation: onnx.ModelProto, evidence: Evidence, budget: Budget, batch: BatchRange | None, count: ImageCount
) -> BackendParity:
    """The simulation's answers: at each size of `batch`, as a backend's; where that is None, in one pass.

    The one pass takes all images where labels are known, the first `SIMULATED_IMAGES` elsewhere.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
    """
    if batch is None and evidence.labels is None:
        evidence = Evidence(
            evidence.inputs[:SIMULATED_IMAGES],
            {name: values[:SIMULATED_IMAGES] for name, values in evidence.outputs.items()},
        )
    size = min(len(evidence.inputs), SIMULATED_BATCH)
    with count(OnnxRuntime.from_bytes(simulation.SerializeToString())) as runtime:
        answer = compare_backend(evidence, SIMULATION, runtime, budget, batch or BatchRange(size, size, size))
    if not answer.report.backends[SIMULATION].finite:
        _name_overflow(simulation, evidence.inputs[:SIMULATED_IMAGES])
    return answer


def noisiest_block_text(graphs: Graphs, inputs: NDArray[Any]) -> str:
    """Name the block that adds the most noise by itself (the stem and the head are blocks too), and what to try.

    The end of an error message, from its semicolon on; empty without a simulation.
    """
    if graphs.simulation is None:
        return ""
    worst, ratio = noisiest_block(graphs.original, graphs.simulation, inputs)
    calibrated = any(node.op_type == "QuantizeLinear" for node in graphs.simulation.graph.node)
    remedy = "try another --calibrator, more --data like what the model sees, or --fp16" if calibrated else "try --fp32"
    if _narrow_type(graphs.simulation) == onnx.TensorProto.BFLOAT16:
        remedy = "try --fp16 or --fp32"
    return f"; {worst} adds the most noise, an SQNR of {ratio:.1f} dB by itself; {remedy}"


def _open(folder: Path, backend: str) -> Runtime:
    runtime = backend_class(backend)
    return runtime.open(folder / runtime.FILE)


def _outputs(runtime: Runtime, inputs: NDArray[Any], size: int) -> Outputs:
    """The outputs by name for all inputs, fed `size` at a time."""
    source = runtime.inputs[0].name
    parts = [runtime.run({source: inputs[start : start + size]}) for start in range(0, len(inputs), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _name_overflow(simulation: onnx.ModelProto, inputs: NDArray[Any], where: str = "on real images") -> None:
    """Raise LowerError for the first tensor of the simulation that is not finite; `where` says on which images."""
    # Each rounded tensor is read as its `.wide` copy: numpy has no BF16.
    names = [
        name
        for node in simulation.graph.node
        if node.op_type == "Cast"
        for name in node.output
        if name.endswith(".wide")
    ]
    values = inner_tensors(simulation, names, inputs)
    for name in names:
        if not np.isfinite(values[name]).all():
            tensor, wider = name.removesuffix(".wide"), wider_precisions(_narrow_type(simulation))
            raise LowerError(f"the values of '{tensor}' are beyond the precision's range {where}; export in {wider}")


def _narrow_type(simulation: onnx.ModelProto) -> int:
    """The ONNX type that a simulation rounds to: that of its first narrowing cast, which is the input's."""
    types = (attribute.i for node in simulation.graph.node if node.op_type == "Cast" for attribute in node.attribute)
    return next(int(kind) for kind in types if kind != onnx.TensorProto.FLOAT)
