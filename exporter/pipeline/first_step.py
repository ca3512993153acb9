"""Find the first change that brings a refused bundle within its budget: each is made, run and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.observers import observers
from exporter.graph.blocks import blocks
from exporter.graph.mixed import with_fp32_nodes
from exporter.graph.probe import noisiest_blocks
from exporter.lowering.bias_correction import with_classifier_correction
from exporter.lowering.lower import LoweredGraph, lower
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.registry import load_precision
from exporter.lowering.request import LoweringRequest
from exporter.pipeline.images import Graphs, Outputs, Proof
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.proof_images import ProofImages
from exporter.verification.report.sentences import join_words
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import LowerError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import class_scores, compare_outputs, is_classifier
from runtimes.parity.evidence import joined, outputs_at
from runtimes.parity.flips import flips_between, top_classes
from runtimes.progress import Steps

FIRST, FLIPPED, NOISE = 32, 32, 8
"""How many images a change is measured on, of the first ones and of those whose class changed; how many blocks are."""
BATCH = 32
RETURNED = (1, 2, 4)
"""How many of the noisiest blocks to return to float together."""
DECIDED_HERE = ("max_relative_error", "min_cosine", "min_sqnr_db", "min_agreement", "max_accuracy_drop")
"""The limits that a change can be measured against."""
WIDER = {"int8": ("fp16",), "bf16": ("fp16",)}
"""The precisions to try in a precision's place; FP32 needs no trial."""


@dataclass(frozen=True)
class Lowering:
    """A lowering that was refused, and what it takes to make another one.

    Attributes:
        clean: the FP32 graph that was lowered.
        calibration: what the ranges were measured on.
        in_form: gives a graph what is written after lowering: the resizing in front of it, or a head for DLA.
        held_to: what the plan holds a precision to, of what that may cost.
    """

    graphs: Graphs
    clean: onnx.ModelProto
    lowered: LoweredGraph
    calibration: CalibrationSet
    plan: ExportPlan
    in_form: Callable[[onnx.ModelProto], onnx.ModelProto]
    held_to: Callable[[Budget], Budget]


class Change(NamedTuple):
    """A change in words, and its graph as a CPU simulates it."""

    words: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class Sample:
    """Images to measure a change on.

    Attributes:
        parts: inputs as the graph takes them, in blocks (images, ...), one after the other.
        expected: the reference's outputs, by name, each (images, ...).
        labels: int64 (images,); None where they are not known.
        weights: how much of all the proof's images each stands for, 0..1, float64 (images,); they add up to 1.
        first: how many of them are the proof's first ones.
    """

    parts: list[NDArray[Any]]
    expected: Outputs
    labels: NDArray[np.int64] | None
    weights: NDArray[np.float64]
    first: int


class Measured(NamedTuple):
    """Whether a change is within the budget, as far as so few images tell, and what was measured, in words."""

    is_within: bool
    text: str


def first_step_text(lowering: Lowering, proof: Proof, images: ProofImages) -> str:
    """Which block adds the most noise by itself, and the first change that helps, or that none does.

    The end of an error message, from its semicolon on; empty where the precision is not what is wrong.
    """
    simulation, precision = lowering.graphs.simulation, lowering.plan.precision
    broken = {limit.name for one in proof.answers.values() for limit in one.limits if limit.verdict == "broken"}
    if simulation is None or not broken.issubset(DECIDED_HERE):
        return ""
    sample, budget = _sample(proof, images), proof.report.budget
    noises = noisiest_blocks(
        with_classifier_correction(lowering.graphs.original, lowering.lowered.table),
        simulation,
        sample.parts[0][:NOISE],
    )
    worst, now = noises[0], measure(simulation, sample, budget)
    text = f"; {worst.block} adds the most noise, an SQNR of {worst.sqnr_db:.1f} dB by itself"
    by = f"by {len(sample.weights)} images"
    if now.is_within:
        return f"{text}; rounded as a device rounds it is within {by}, so that the precision may not be what is wrong"
    if lowering.plan.lowering_request.is_calibrated and lowering.lowered.table is None:
        return f"{text}; its scales are the file's own: take --recalibrate, or --dequantize --fp16"
    if lowering.plan.lowering_request.is_calibrated:
        names = [one.block for one in noises]
        for words, model in _changes(lowering, names):
            found = measure(model, sample, budget)
            if found.is_within:
                option = "" if words.startswith("--") else _returning_option(lowering.plan, budget, sample)
                return f"{text}; what helps, {by}: {words} ({found.text}; now {now.text}){option}"
        text += (
            f"; {by} no other calibrator brings it within, nor do {join_words(names[: RETURNED[-1]])} in float: every "
            "block adds a little, which quantization-aware training mends"
        )
    for wider in WIDER.get(precision, ()):
        with suppress(LowerError):
            found = measure(_in_precision(lowering, wider), sample, lowering.held_to(load_precision(wider).BUDGET))
            if found.is_within:
                return f"{text}; --{wider} is within ({found.text}; now {now.text})"
    return f"{text}; take --fp32"


def measure(model: onnx.ModelProto, sample: Sample, budget: Budget) -> Measured:
    """Run a graph on the sample, and judge it: errors on the first images, agreement and fall of top-1 on all, each
    image with its weight."""
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        found = joined([outputs_at(runtime, part, min(BATCH, len(part))) for part in sample.parts])
    first = slice(sample.first)
    errors = compare_outputs(
        {name: values[first] for name, values in sample.expected.items()},
        {name: values[first] for name, values in found.items()},
        budget,
    )
    is_within = all(limit.ok for limit in budget.errors_alone().limits(errors))
    words = [f"SQNR {errors.sqnr_db:.1f} dB"]
    if is_classifier(sample.expected) and all(np.isfinite(values).all() for values in found.values()):
        expected, got = class_scores(sample.expected), class_scores(found)
        counted = [flip.image for flip in flips_between(expected, got, budget.own_error) if flip.counted]
        agreement = 1 - float(sample.weights[counted].sum())
        is_within &= budget.min_agreement is None or agreement >= budget.min_agreement
        words.append(f"agreement {agreement:.1%}")
        if sample.labels is not None:
            right = [(top_classes(logits) == sample.labels).astype(np.float64) for logits in (expected, got)]
            fall = float(((right[0] - right[1]) * sample.weights).sum())
            is_within &= budget.max_accuracy_drop is None or fall <= budget.max_accuracy_drop
            words.append(f"fall of top-1 {fall:.1%}")
    return Measured(bool(is_within), ", ".join(words))


def _sample(proof: Proof, images: ProofImages) -> Sample:
    """The first images, and some of those whose class changed: each kind stands for all images of its kind."""
    count, flips = proof.report.images, next(iter(proof.answers.values())).flips
    flipped = np.array(sorted(flip.image for flip in flips), np.int64)
    first = min(FIRST, len(images.first.fed))
    others = flipped[flipped >= first][:FLIPPED]
    rows = np.concatenate([np.arange(first), others])
    is_flipped = np.isin(rows, flipped)
    weights = np.where(
        is_flipped,
        len(flipped) / count / max(1, is_flipped.sum()),
        (1 - len(flipped) / count) / max(1, (~is_flipped).sum()),
    )
    parts = [images.first.fed[:first], *([images.at(proof.places[others]).fed] if len(others) else [])]
    expected = {name: values[rows] for name, values in proof.outputs.items()}
    labels = None if proof.labels is None else proof.labels[rows]
    return Sample(parts, expected, labels, weights / weights.sum(), first)


def _changes(lowering: Lowering, noisiest: Sequence[str]) -> Iterator[Change]:
    """The changes to try on a calibrated graph, the cheapest at run time first."""
    graphs, lowered = lowering.graphs, lowering.lowered
    for name in observers():
        if lowered.with_calibrator is not None and lowered.table is not None and name != lowered.table.calibrator:
            with suppress(LowerError):
                model = lowering.in_form(lowered.with_calibrator(name).model)
                yield Change(f"--calibrator {name}", _simulation(model, lowering.plan.precision))
    assert graphs.simulation is not None
    for count in RETURNED:
        returned = [one for one in noisiest[:count] if count < len(noisiest)]
        nodes = {
            graphs.original.graph.node[place].name
            for block in blocks(graphs.original.graph)
            if block.name in returned
            for place in block.nodes
        }
        if nodes:
            yield Change(f"{join_words(returned)} in float", with_fp32_nodes(graphs.original, graphs.simulation, nodes))


def _returning_option(plan: ExportPlan, budget: Budget, sample: Sample) -> str:
    """The option that chooses which blocks return, as the end of a sentence; empty where it was given or means
    nothing."""
    if plan.loss_target is not None or plan.features is not None or plan.weights == "random":
        return ""
    limits = {"--max-drop": budget.max_accuracy_drop if sample.labels is not None else None}
    limits["--min-agreement"] = None if budget.min_agreement == 1 else budget.min_agreement
    option = next((f"{name} {limit * 100:g}" for name, limit in limits.items() if limit), "")
    if not option:
        return ""
    return f"; {option}{', with --data,' if plan.data is None else ''} chooses such blocks and proves them"


def _in_precision(lowering: Lowering, precision: str) -> onnx.ModelProto:
    """The graph lowered to a precision that needs no ranges, as a CPU simulates it.

    Raises:
        LowerError: it cannot be lowered so.
    """
    request = LoweringRequest(precision, lowering.plan.target)
    model = lower(lowering.clean, lowering.calibration, request, Steps()).model
    return _simulation(lowering.in_form(model), precision)


def _simulation(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    return load_precision(precision).simulation(model) or model
