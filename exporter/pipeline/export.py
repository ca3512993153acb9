"""The order of steps from a plan to a bundle: `export` reads as their table of contents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnx
from torch.export import ExportedProgram

from calibration.distributed.local import LOCAL
from calibration.distributed.shards import Executor
from calibration.observers import find_observer
from exporter.graph.build import GraphForm, clean_graph, in_its_form
from exporter.graph.intake.take import TakenFile
from exporter.graph.pillow_resize import check_resizable
from exporter.graph.trace import program_from_module, save_program
from exporter.lowering.bias_correction import with_classifier_correction
from exporter.lowering.lower import lower, lower_quantized
from exporter.lowering.precisions import Precision
from exporter.lowering.qdq.integer_nodes import kernel_count
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.registry import load_precision
from exporter.models.backbone import output_names, with_features
from exporter.models.determinism import check_deterministic
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.pipeline.choose_images import calibration_set, opened_data, parted_images, proof_images
from exporter.pipeline.first_step import Lowering
from exporter.pipeline.images import Candidate, Graphs, Images, Proof
from exporter.pipeline.load_file import LoadedFile, load_file
from exporter.pipeline.plan import DEFAULT_BATCH, FULL, ONNX, ExportPlan
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from exporter.pipeline.refusal import why_refused
from exporter.pipeline.resize_proof import images_of_one_colour, resize_to_fitting_size
from exporter.pipeline.return_blocks import STEP as RETURN_BLOCKS
from exporter.pipeline.return_blocks import Judge, removed_when_done, return_blocks
from exporter.pipeline.terms import budget_for
from exporter.pipeline.trial import Reference
from exporter.pipeline.write_bundle import GOLDEN_IMAGES, Findings, Golden, write_bundle
from exporter.verification.blocks.both_sides import BothSides
from exporter.verification.blocks.drift import drift_between
from exporter.verification.blocks.findings import Drift
from exporter.verification.blocks.reference import block_reference
from exporter.verification.report.block_text import returned_text
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.backends.pytorch import PyTorchRuntime
from runtimes.base import Runtime
from runtimes.bundle_writing import check_rejected, keep_rejected, staging_folder
from runtimes.errors import LowerError, ParityError, PlanError
from runtimes.kernels import MARK, KernelCount
from runtimes.manifest import Manifest
from runtimes.parity.budget import Budget
from runtimes.preprocess import Preprocess
from runtimes.progress import Progress, Steps, silent
from runtimes.source_runtime import SourceFileRuntime
from runtimes.specs import BatchRange

OTHERS_CODE = ("custom", "timm")
"""Sources whose networks may answer the same image differently each time: their code is not ours."""
DRIFT_IMAGES = 2


@dataclass(frozen=True)
class Export:
    """A finished bundle: where it is, what its manifest says, and how long each step took.

    `no_accuracy` is why accuracy is not measured on --data that has classes; empty where it is.
    """

    folder: Path
    manifest: Manifest
    seconds: dict[str, float]
    no_accuracy: str = ""


class _Loaded(NamedTuple):
    """A model, and the images to calibrate it on, to prove it with, and to choose blocks with, if any are chosen."""

    model: LoadedModel | LoadedFile
    calibration: CalibrationSet
    images: ProofImages
    choosing: ProofImages | None


class _Proven(NamedTuple):
    """A proof, the images that it rests on, and what travels with the bundle."""

    proof: Proof
    images: ProofImages
    golden: Golden


def export(plan: ExportPlan, progress: Progress = silent, executor: Executor = LOCAL) -> Export:
    """Carry out a plan. The bundle at `plan.output` is complete and proven when this returns, untouched when it raises.

    Args:
        plan: what to export.
        progress: called as each step begins, and with the counts of long ones.
        executor: whose workers share the pictures to calibrate on.

    Raises:
        ParityError: the bundle is out of budget, or its images leave that undecided. With `plan.keep_rejected`, it is
            then at `runtimes.bundle_writing.rejected_path(plan.output)`.
        ResnetExportError: any other of its kinds; see `runtimes.errors`.
    """
    steps = Steps(progress)
    precision = load_precision(plan.precision)
    if plan.calibrator is not None:
        find_observer(plan.calibrator)  # refused before the long work
    if plan.keep_rejected:
        check_rejected(plan.output)  # likewise
    with removed_when_done(plan), staging_folder(plan.output, force=plan.force) as folder:
        with steps("take in" if plan.spec.source == ONNX else "weights"):
            model = _load_model(plan, folder, steps)
            plan = _with_fixed_batch(plan, model)
            loaded, calibration, images, choosing = _load(model, plan, precision.BUDGET, steps, executor)
        program = loaded.taken if isinstance(loaded, LoadedFile) else _trace(loaded, images.first, plan, steps)
        form = _graph_form(plan, loaded)
        float_graph = clean_graph(program, form, loaded.preprocess, images.first.inputs, steps)
        if isinstance(loaded, LoadedFile) and loaded.keeps_scales:
            lowered, said = lower_quantized(float_graph, plan.lowering_request, steps)
            float_graph, loaded = lowered.exact, loaded.with_steps(said)
        else:
            lowered = lower(float_graph, calibration, plan.lowering_request, steps)
        budget = budget_for(plan, loaded, lowered.budget)
        in_form = partial(in_its_form, form=form, preprocess=loaded.preprocess)
        with steps("save"):
            if not isinstance(program, TakenFile):
                save_program(program, folder / PyTorchRuntime.FILE, form.outputs)
        open_reference = partial(_open_reference, folder, program, loaded.preprocess, plan)
        mixed = None
        if choosing is not None:
            with open_reference() as runtime, steps(RETURN_BLOCKS):
                judge = Judge(choosing, Reference(runtime, plan.batch.max), budget, plan.batch, precision, in_form)
                lowered, mixed = return_blocks(plan, float_graph, lowered, judge, steps)
        clean, model = in_form(lowered.exact), in_form(lowered.model)
        with steps("save"):
            _save(folder, model, plan)
        with steps("prove"):
            graphs = Graphs(clean, _simulation(folder, model, precision))
            open_file = open_reference if isinstance(program, TakenFile) else None
            candidate = Candidate(folder, graphs, plan.batch, precision.runs_on(model), form.any_size, open_file)
            proof, images, golden = _prove(candidate, images, loaded.preprocess, budget, progress)
            kernels = _checked_kernels(folder, model) if plan.lowering_request.promises_integers else None
            held_to = partial(budget_for, plan, loaded)
            lowering = Lowering(graphs, float_graph, lowered, calibration, plan, in_form, held_to)
            refusal = why_refused(proof, images, lowering)
            if refusal and mixed is not None:
                refusal = f"{refusal}; the choice was {returned_text(mixed)}"
        if refusal and not plan.keep_rejected:
            raise ParityError(f"{refusal}; no bundle was written, --keep-rejected keeps it as evidence", proof.report)
        drift = None
        if plan.report:
            with steps("follow blocks"):
                exact, factors = in_form(with_classifier_correction(lowered.exact, lowered.table)), lowered.factors
                both = BothSides(
                    block_reference(program), clean, exact, model, graphs.simulation, bool(candidate.backends), factors
                )
                drift = _drift(both, images.first, budget)
        with steps("write"):
            found = Findings(lowered.table, images, proof, golden, drift, lowered.sensitivity, mixed, kernels)
            manifest = write_bundle(folder, plan, loaded, model, found)
        if refusal:
            kept = keep_rejected(folder, plan.output)
            raise ParityError(f"{refusal}; {plan.output} was not written, the evidence is in {kept}", proof.report)
    return Export(plan.output, manifest, steps.seconds, images.no_accuracy)


def _load_model(plan: ExportPlan, folder: Path, steps: Steps) -> LoadedModel | LoadedFile:
    """The model with its weights; of a file, the reference is written into the bundle's folder as well."""
    if plan.spec.source == ONNX:
        loaded: LoadedModel | LoadedFile = load_file(plan, folder)
    else:
        loaded = with_features(load_model(plan.model_request), plan.features)
    for what in loaded.left_out:
        steps.left_out(what)
    return loaded


def _with_fixed_batch(plan: ExportPlan, model: LoadedModel | LoadedFile) -> ExportPlan:
    """The plan with the one batch size that a file takes, where it takes no other.

    Raises:
        PlanError: another one is asked for.
    """
    size = model.taken.fixed_batch if isinstance(model, LoadedFile) else None
    if size is None or plan.batch == BatchRange(size, size, size):
        return plan
    if plan.batch != DEFAULT_BATCH:
        raise PlanError(
            f"--batch says {plan.batch}, but {model.facts.name} takes batches of {size} alone; leave it out"
        )
    return replace(plan, batch=BatchRange(size, size, size))


def _load(model: LoadedModel | LoadedFile, plan: ExportPlan, own: Budget, steps: Steps, executor: Executor) -> _Loaded:
    """The images for a model; what contradicts itself is refused here, before the long work."""
    if plan.uint8_input == FULL:
        check_resizable(model.preprocess)
    data = opened_data(plan)
    calibration = replace(calibration_set(model, plan, data), executor=executor)
    budget, choosing = budget_for(plan, model, own), None
    if plan.loss_target is None:
        images = proof_images(model, plan, data, budget, steps)
    else:
        choosing, images = parted_images(model, plan, data, budget, steps)
    plain = images_of_one_colour(model.preprocess, as_pixels=plan.uint8_input is not None)
    return _Loaded(model, calibration, replace(images, plain=plain), choosing)


def _trace(loaded: LoadedModel, images: Images, plan: ExportPlan, steps: Steps) -> ExportedProgram:
    """The FP32 program of a module.

    Raises:
        TraceError: PyTorch cannot trace it, or it answers the same image differently each time.
    """
    with steps("trace"):
        if plan.spec.source in OTHERS_CODE:
            check_deterministic(loaded.module, images.inputs[0], plan.model)
        return program_from_module(loaded.module, loaded.preprocess.shape)


def _open_reference(
    folder: Path, program: ExportedProgram | TakenFile, preprocess: Preprocess, plan: ExportPlan
) -> Runtime:
    """What the bundle's graph is held against."""
    if isinstance(program, TakenFile):
        return SourceFileRuntime.of(program.path, program.facts, preprocess.shape, plan.batch)
    return PyTorchRuntime.open(folder / PyTorchRuntime.FILE)


def _graph_form(plan: ExportPlan, loaded: LoadedModel | LoadedFile) -> GraphForm:
    takes_pixels, any_size = plan.uint8_input is not None, plan.uint8_input == FULL
    outputs = loaded.taken.outputs if isinstance(loaded, LoadedFile) else output_names(loaded.module)
    return GraphForm(plan.opset, plan.batch, outputs, takes_pixels, any_size, plan.dla_friendly)


def _save(folder: Path, model: onnx.ModelProto, plan: ExportPlan) -> None:
    """Write `model.onnx`, with what a reader has to know who gets only the file."""
    props = {"precision": plan.precision}
    if plan.lowering_request.is_calibrated:
        props |= {"target": plan.target} | (MARK if plan.lowering_request.promises_integers else {})
    onnx.helper.set_model_props(model, props)
    onnx.save(model, folder / "model.onnx")


def _checked_kernels(folder: Path, model: onnx.ModelProto) -> KernelCount:
    """What the graph lets run on integers, after a check that onnxruntime runs as much.

    Raises:
        LowerError: it does not.
    """
    with OnnxRuntime.open(folder / OnnxRuntime.FILE) as runtime:
        ran = runtime.kernels()
    promised = kernel_count(model)
    missing = ran.shortfall(promised) if ran is not None else ""
    if missing:
        raise LowerError(f"onnxruntime does not run the graph on integers: {missing}; update onnxruntime")
    return promised


def _simulation(folder: Path, model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto | None:
    """The lowered graph rewritten to round on a CPU as a device does; None where a CPU does so anyway.

    A file that no backend here runs is read back, so that the simulation is of what was written.
    """
    return precision.simulation(model if precision.runs_on(model) else onnx.load(folder / "model.onnx"))


def _prove(
    candidate: Candidate, images: ProofImages, preprocess: Preprocess, budget: Budget, progress: Progress
) -> _Proven:
    """Prove the files; the images that travel with the bundle are those of the first block, unless the graph resizes.

    Built-in images have the network's size already. For a graph that resizes, they are brought to another size, and the
    files are proven on them as well.
    """
    proof = prove(candidate, images, budget=budget, progress=progress)
    proven = _Proven(proof, images, Golden(images.first, proof.outputs))
    if not candidate.resizes or not proof.report.ok:
        return proven
    resized = resize_to_fitting_size(images.first, preprocess, GOLDEN_IMAGES[-1])
    if resized is images.first:
        return proven
    again = ProofImages(resized, len(resized.fed), no_accuracy=images.no_accuracy)
    other = prove(candidate, again, budget=budget.errors_alone(), progress=progress)
    golden = Golden(resized, other.outputs)
    return _Proven(proof, images, golden) if other.report.ok else _Proven(other, again, golden)


def _drift(both: BothSides, images: Images, budget: Budget) -> Drift | None:
    """The drift block by block, for the report; None for a network whose blocks cannot be told."""
    try:
        return drift_between(both, images.fed[:DRIFT_IMAGES], images.inputs[:DRIFT_IMAGES], budget)
    except PlanError:
        return None
