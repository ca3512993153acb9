"""Prove that a bundle's files compute what its reference does: the FP32 PyTorch program, or the file it came from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.probe import inner_tensors
from exporter.lowering.precisions._cast import wider_precisions
from exporter.pipeline.images import Candidate, Images, Proof
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.trial import Reference, Trial
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.base import Runtime
from runtimes.errors import LowerError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import ParityReport, is_classifier
from runtimes.parity.evidence import BackendParity, Terms, outputs_at
from runtimes.parity.intervals import look_sizes
from runtimes.parity.limits import limit_of_finite
from runtimes.progress import Progress, silent
from runtimes.specs import BatchRange

SIMULATION = "simulation"
SIMULATED_IMAGES = 32
"""Of a simulation beside a backend, which takes twice the time of a plain run. A CPU computes in FP32 what a device
does in FP16, so that the simulation alone finds a value beyond the range of FP16."""
NOT_FINITE = (
    "gives a picture of one colour an answer that is no number, where the reference gives one; "
    "look for a division by zero in the network"
)


def prove(candidate: Candidate, images: ProofImages, *, budget: Budget, progress: Progress = silent) -> Proof:
    """Run the reference and, on each backend, its model file, over the same images, and judge the answers.

    The images come in blocks, of which only the outputs are kept. Where limits count images, the answers are judged
    after each of `look_sizes`, and no more images are run once all limits are kept or one is broken. The largest batch
    runs on all images, the smaller ones on the first.

    The backends decide. The simulation runs on the first few images beside them, held to the limits that need no
    counting. Where no backend runs the file, the simulation decides in their place, and onnx's checker reads the file.
    Accuracy is that of what decides.

    For images of one colour, every answer must be finite where the reference's is.

    Returns:
        the proof, also where it is out of budget or undecided.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
    """
    simulation = candidate.graphs.simulation
    if not candidate.backends:
        if simulation is None:
            raise ValueError("expected a backend or a simulation to prove the file with, got neither")
        onnx.checker.check_model(candidate.folder / OnnxRuntime.FILE, full_check=True)
    with candidate.open_file() if candidate.open_file else _open(candidate.folder, "pytorch") as program:
        reference = Reference(program, candidate.batch.opt)
        plain = _FiniteCheck(images.plain, program, candidate.batch)
        beside = {}
        if candidate.backends and simulation is not None:
            beside = _run_simulation(simulation, images.first, reference, plain, budget)
        with ExitStack() as opened:
            deciding: dict[str, Runtime] = {
                name: opened.enter_context(_open(candidate.folder, name)) for name in candidate.backends
            }
            if not deciding and simulation is not None:
                deciding[SIMULATION] = opened.enter_context(OnnxRuntime.from_bytes(simulation.SerializeToString()))
            for name, runtime in deciding.items():
                plain.check(name, runtime, simulation)
            count = _ImageCount(images.most, 1 + len(deciding), progress)
            trial = Trial(reference, deciding, _output_names(candidate), candidate.batch, count)
            answers = decide(trial, images, budget, simulation)
    answers = {name: plain.mark(name, answer) for name, answer in (answers | beside).items()}
    report = ParityReport(
        ok=all(one.ok for one in answers.values()),
        images=trial.images,
        batches=candidate.batch.proof_sizes,
        backends={name: one.report.backends[name] for name, one in answers.items()},
        budget=budget,
    )
    decisive = next(iter(answers.values()))
    return Proof(trial.outputs, answers, report, decisive.accuracy, trial.labels, trial.places)


def decide(
    trial: Trial, images: ProofImages, budget: Budget, simulation: onnx.ModelProto | None = None
) -> dict[str, BackendParity]:
    """Run the images until they decide, or are at their end; the answers by the runtimes' names.

    Raises:
        LowerError: an answer is not finite; names the first tensor of the simulation that is not.
    """
    counts = budget.takes_confidence and is_classifier(trial.names)
    looks = list(look_sizes(images.most) if counts else (images.most,))
    terms = Terms(budget, looks=len(looks), must_decide=True)
    answers: dict[str, BackendParity] = {}
    for block in images.blocks():
        answers = {}
        wrong = trial.run(block)
        if len(wrong) and simulation is not None:
            _name_overflow(simulation, block.fed[wrong[:SIMULATED_IMAGES]])
        if trial.images >= looks[0]:
            looks = [size for size in looks if size > trial.images] or [images.most + 1]
            answers = trial.judge(terms)
            verdicts = {one.verdict for one in answers.values()}
            if verdicts == {"ok"} or "broken" in verdicts:
                break
    return answers or trial.judge(terms)


def _run_simulation(
    simulation: onnx.ModelProto, images: Images, reference: Reference, plain: _FiniteCheck, budget: Budget
) -> dict[str, BackendParity]:
    """The simulation's answers for the first `SIMULATED_IMAGES`, held to the limits that need no counting.

    Raises:
        LowerError: a tensor is beyond the precision's range; names it.
    """
    few = images.chosen(slice(SIMULATED_IMAGES))
    size = min(reference.size, len(few.fed))
    with OnnxRuntime.from_bytes(simulation.SerializeToString()) as runtime:
        plain.check(SIMULATION, runtime, simulation)
        names = [spec.name for spec in runtime.outputs]
        trial = Trial(reference, {SIMULATION: runtime}, names, BatchRange(size, size, size))
        if len(trial.run(replace(few, labels=None))):
            _name_overflow(simulation, few.fed)
    return trial.judge(Terms(budget.errors_alone()))


class _ImageCount:
    """Says how many images have been run by all of some runtimes, on average: a block takes a while."""

    def __init__(self, most: int, runtimes: int, progress: Progress) -> None:
        self.most, self.runtimes, self.progress, self.rows = most, runtimes, progress, 0

    def __call__(self, rows: int) -> None:
        self.rows += rows
        self.progress("prove", self.rows // self.runtimes, self.most)


class _FiniteCheck:
    """Feeds images of one colour, and keeps which backends gave NaN or infinity where the reference did not.

    Attributes:
        not_finite: the names of those backends.
    """

    def __init__(self, images: Images | None, reference: Runtime, batch: BatchRange) -> None:
        self.not_finite: list[str] = []
        self.images = images
        if images is not None:
            self.size = max(batch.min, min(len(images.inputs), batch.max))
            self.expected = [np.isfinite(values) for values in outputs_at(reference, images.inputs, self.size).values()]

    def check(self, name: str, runtime: Runtime, simulation: onnx.ModelProto | None) -> None:
        """Note the backend where a value is not finite that is finite in the reference.

        Raises:
            LowerError: it is the simulation; names its first tensor that is not finite.
        """
        if self.images is None:
            return
        found = outputs_at(runtime, self.images.fed, self.size).values()
        if all(np.isfinite(values[finite]).all() for values, finite in zip(found, self.expected, strict=True)):
            return
        self.not_finite.append(name)
        if name == SIMULATION and simulation is not None:
            _name_overflow(simulation, self.images.fed, "for a picture of one colour")

    def mark(self, name: str, answer: BackendParity) -> BackendParity:
        """The answer of a backend, broken if it failed the check."""
        if name not in self.not_finite:
            return answer
        limit = limit_of_finite(problem=f"it {NOT_FINITE}")
        measured = answer.report.backends[name]
        measured = replace(measured, ok=False, violations=(limit.text, *measured.violations))
        report = replace(answer.report, ok=False, backends={name: measured})
        return replace(answer, report=report, limits=(limit, *answer.limits[1:]))


def _output_names(candidate: Candidate) -> list[str]:
    return [value.name for value in candidate.graphs.original.graph.output]


def _open(folder: Path, backend: str) -> Runtime:
    runtime = backend_class(backend)
    return runtime.open(folder / runtime.FILE)


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
