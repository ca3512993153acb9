"""Return blocks of an INT8 network to float until it keeps a limit, and as few as do: what `--max-drop` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import onnx

from exporter.graph.parts import named_blocks
from exporter.lowering.block_search import Returned, candidates, find_returned, most_evaluations
from exporter.lowering.lower import LoweredGraph
from exporter.lowering.precisions import Precision
from exporter.pipeline.loss_target import LossTarget
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import decide
from exporter.pipeline.search_journal import SUFFIX, Journal, digest_of
from exporter.pipeline.trial import Reference, Trial
from exporter.verification.report.block_text import measured_text, tried_text
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.block_precision import BlockDamage, MixedPrecision, Tried
from runtimes.errors import AccuracyError, ParityError, PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.evidence import BackendParity
from runtimes.parity.intervals import look_sizes, tango_interval, wilson_interval
from runtimes.parity.limits import Confidence
from runtimes.progress import Steps
from runtimes.specs import BatchRange

STEP = "return blocks"
LEAST_SHARE = 0.1
"""Of the INT8 work, what must stay: with less of it, a network is in float but for a few convolutions."""


class Mixed(NamedTuple):
    """The network with some blocks in float, and how they were chosen."""

    lowered: LoweredGraph
    found: MixedPrecision


@dataclass(frozen=True)
class Judge:
    """Judges choices of blocks.

    Attributes:
        images: used for nothing else.
        reference: the FP32 program, which runs the images for the first choice alone.
        budget: what a choice must keep.
        batch: the sizes that the network is for; the largest is run.
        in_form: gives a graph what is written after lowering: the resizing in front of it, or a head for DLA.
    """

    images: ProofImages
    reference: Reference
    budget: Budget
    batch: BatchRange
    precision: Precision
    in_form: Callable[[onnx.ModelProto], onnx.ModelProto]

    def __call__(self, model: onnx.ModelProto) -> BackendParity:
        """Run a whole graph, or its simulation where no backend runs it, until the budget is decided."""
        run = model if self.precision.runs_on(model) else self.precision.simulation(model)
        assert run is not None
        largest = BatchRange(self.batch.max, self.batch.max, self.batch.max)
        with OnnxRuntime.from_bytes(run.SerializeToString()) as runtime:
            names = [value.name for value in model.graph.output]
            trial = Trial(self.reference, {STEP: runtime}, names, largest)
            return decide(trial, self.images, self.budget)[STEP]


def return_blocks(plan: ExportPlan, graph: onnx.ModelProto, lowered: LoweredGraph, judge: Judge, steps: Steps) -> Mixed:
    """Choose which blocks return to float: FP16, or FP32 for a processor.

    What was tried is kept beside the bundle, so that an interrupted search goes on from there.

    Args:
        graph: the FP32 graph that was lowered.
        lowered: all of it in INT8, with its sensitivity.
        steps: told beforehand how many choices are tried at most, and of each that is done.

    Raises:
        PlanError: there is another file where the journal is to be, or no block of the network is in INT8.
        AccuracyError: no choice keeps the limit, or none that leaves enough in INT8; carries the best in words.
    """
    target = plan.loss_target
    assert target is not None
    assert lowered.sensitivity is not None, "a target needs images, and these are measured on"
    ranked = candidates(lowered.sensitivity.blocks)
    if not ranked:
        raise PlanError(f"{target.option} returns blocks from INT8 to float, and none is in INT8 here; leave it out")
    journal = Journal(_journal_path(plan), _digest(plan, graph, lowered, judge), steps.progress)
    search = _Search(graph, lowered, judge, target, journal, ranked)
    count, most = most_evaluations(len(ranked)), judge.images.most
    steps.progress(f"{STEP}: at most {count} evaluations on {most} images each, then one proof on others")

    def is_inside(returned: Returned) -> bool:
        found = search.tried(returned)
        steps.progress(STEP, len(search.curve), count)
        return found.verdict == "ok"

    returned = find_returned(ranked, is_inside)
    if returned is None:
        raise AccuracyError(search.impossible_text())
    chosen = search.tried(returned)
    if chosen.int8_share < LEAST_SHARE:
        raise AccuracyError(search.diffuse_text(chosen))
    found = MixedPrecision(
        target.wanted, target.limit, chosen.returned, len(ranked), judge.images.most, tuple(search.curve.values())
    )
    final = replace(search.lowered_with(returned), sensitivity=lowered.sensitivity)
    return Mixed(final, found)


class _Search:
    """The choices that were tried, each once.

    Attributes:
        curve: by the blocks returned, in the order in which they were asked for.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        lowered: LoweredGraph,
        judge: Judge,
        target: LossTarget,
        journal: Journal,
        ranked: tuple[BlockDamage, ...],
    ) -> None:
        self.lowered, self.judge, self.target, self.journal = lowered, judge, target, journal
        self.price = {one.name: one.macs for one in ranked}
        self.nodes = {
            name: {graph.graph.node[place].name for place in block.nodes}
            for name, block in named_blocks(graph.graph).items()
        }
        self.curve: dict[Returned, Tried] = {}

    def tried(self, returned: Returned) -> Tried:
        """What the images say of a choice; run only where it was not run before."""
        names = tuple(name for name in self.nodes if name in returned)
        if returned not in self.curve:
            if names not in self.journal.tried:
                self.journal.add(self._try(names))
            self.curve[returned] = self.journal.tried[names]
        return self.curve[returned]

    def lowered_with(self, returned: Returned) -> LoweredGraph:
        """The network with these blocks in float."""
        if not returned or self.lowered.with_float_nodes is None:
            return self.lowered
        return self.lowered.with_float_nodes(set().union(*(self.nodes[name] for name in returned)))

    def _try(self, names: tuple[str, ...]) -> Tried:
        model = self.judge.in_form(self.lowered_with(frozenset(names)).model)
        answer = self.judge(model)
        measured, limits = _measured(answer, self.target, len(look_sizes(self.judge.images.most)))
        inside = sum(macs for name, macs in self.price.items() if name not in names)
        return Tried(
            returned=names,
            verdict=answer.verdict,
            images=answer.report.images,
            measured=measured,
            limits=limits,
            problems=tuple(one.text for one in answer.limits if one.verdict == answer.verdict != "ok"),
            int8_share=inside / sum(self.price.values()),
            bytes=model.ByteSize(),
        )

    @property
    def best(self) -> Tried:
        """The choice that comes nearest to the limit; of equal ones, that with the most in INT8."""
        sign = 1 if self.target.wanted == "max_drop" else -1
        return min(self.curve.values(), key=lambda one: (sign * one.measured, -one.int8_share))

    def impossible_text(self) -> str:
        """Why no choice keeps the limit."""
        every = self.tried(frozenset(self.price))
        return (
            f"no choice of blocks shows {self.target.text}: with all {len(self.price)} in float, "
            f"{'; '.join(every.problems)}; best found: {tried_text(self.best, self.target.wanted)}; "
            + (
                f"give {self._more}"
                if every.verdict == "undecided"
                else f"INT8 is not what costs it: allow more by {self.target.option}, or try --fp32"
            )
        )

    @property
    def _more(self) -> str:
        """The option that gives more images to choose with."""
        images = self.judge.images
        return "more --data" if images.available < images.wanted else "a larger --proof-images"

    def diffuse_text(self, chosen: Tried) -> str:
        """Why the choice is none: nearly everything would have to return."""
        every = self.tried(frozenset())
        blocks, left = f"{len(chosen.returned)} of {len(self.price)} blocks", 100 * chosen.int8_share
        return (
            f"the loss of INT8 is spread over the network: to keep {self.target.text}, {blocks} would have to return "
            f"to float, which leaves {left:.1f}% of the work in INT8 (all of it in INT8: "
            f"{measured_text(every, self.target.wanted)}); take --fp16, train the network with quantization (QAT), or "
            f"allow more by {self.target.option}"
        )


def _measured(answer: BackendParity, target: LossTarget, looks: int) -> tuple[float, tuple[float, float]]:
    """The fall of top-1 or the agreement, 0..1, and its one-sided limits."""
    budget, (compared,) = answer.report.budget, answer.report.backends.values()
    z = Confidence(budget.confidence or 0.95, looks).z
    images = answer.report.images
    if target.wanted == "max_drop":
        assert answer.accuracy is not None, "the images' classes are the model's"
        lost, gained = answer.accuracy.lost or 0, answer.accuracy.gained or 0
        return (lost - gained) / images, tango_interval(lost, gained, images, z)
    assert compared.flips is not None
    agreeing = images - compared.flips.counted
    return agreeing / images, wilson_interval(agreeing, images, z)


@contextmanager
def removed_when_done(plan: ExportPlan) -> Iterator[None]:
    """Remove the journal of a plan's search when the bundle is written or refused; an interrupted search keeps it."""
    try:
        yield
    except (ParityError, AccuracyError):
        _remove_journal(plan)
        raise
    _remove_journal(plan)


def _remove_journal(plan: ExportPlan) -> None:
    if plan.loss_target is not None:
        _journal_path(plan).unlink(missing_ok=True)


def _journal_path(plan: ExportPlan) -> Path:
    return plan.output.with_name(f"{plan.output.name}{SUFFIX}")


def _digest(plan: ExportPlan, graph: onnx.ModelProto, lowered: LoweredGraph, judge: Judge) -> str:
    """Of all that a choice's verdict depends on: the network, the ranges with their images and versions, the images to
    choose with (by names, classes and places, and the content of the first block), and the options."""
    images, source = judge.images, judge.images.reader.source if judge.images.reader else None
    assert lowered.table is not None
    assert source is not None
    labels = source.labels
    options = (plan.loss_target, judge.budget.text(), images.most, plan.batch, plan.target, plan.calibrator)
    return digest_of(
        graph.SerializeToString(deterministic=True),
        lowered.table.json(),
        repr((options, version("torch"), source.count, source.names)).encode(),
        b"" if labels is None else labels.tobytes(),
        images.rest.tobytes(),
        images.first.fed.tobytes(),
    )
