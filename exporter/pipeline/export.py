"""The order of steps from a plan to a bundle. The only module that writes files."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from calibration.observers import find_observer
from calibration.table import CalibrationTable
from exporter.graph.build import GraphForm, clean_graph, with_resize
from exporter.graph.facts import graph_facts, tensor_specs
from exporter.graph.pillow_resize import check_resizable
from exporter.graph.trace import program_from_module, save_program
from exporter.lowering.bias_correction import with_correction
from exporter.lowering.lower import lower
from exporter.lowering.registry import load_precision
from exporter.models.backbone import output_names, with_features
from exporter.models.determinism import check_steady
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.pipeline.choose_images import calibration_set, proof_images
from exporter.pipeline.images import Graphs, Images, Outputs, Proof
from exporter.pipeline.plan import FULL, ExportPlan
from exporter.pipeline.prove import prove
from exporter.pipeline.report_page import REPORT, page_from_proof
from exporter.pipeline.resize_proof import images_of_one_colour, of_fitting_size
from exporter.verification.blocks.both_sides import BothSides
from exporter.verification.blocks.drift import drift_between
from exporter.verification.blocks.findings import Drift
from runtimes.bundle import Bundle, files_of, finish, staging_folder
from runtimes.errors import PlanError
from runtimes.manifest import SCHEMA_VERSION, CalibrationFacts, Manifest
from runtimes.parity.budget import Budget
from runtimes.progress import Progress, Steps, silent

PACKAGES = ("resnet-export", "torch", "torchvision", "onnx", "onnxscript", "onnxsim", "numpy", "pillow")
OTHERS_CODE = ("custom", "timm")
"""Sources of networks of which nobody has read whether they answer a picture alike each time."""
DRIFT_IMAGES = 2
GOLDEN_IMAGES, GOLDEN_BYTES = (8, 32), 4 << 20
FEWEST_GOLDEN_FEATURES = 2
"""Of a ResNet-50 at 224 pixels, the stages of one image are 6 MB."""


@dataclass(frozen=True)
class Export:
    """A finished bundle: where it is, what its manifest says, and how long each step took.

    `no_accuracy` is why accuracy is not measured on --data that has classes; empty where it is.
    """

    folder: Path
    manifest: Manifest
    seconds: dict[str, float]
    no_accuracy: str = ""


def export(plan: ExportPlan, progress: Progress = silent) -> Export:
    """Carry out a plan: the bundle at `plan.output` is complete and proven when this returns, and untouched when it raises.

    Args:
        plan: what to export.
        progress: told of the steps.

    Raises:
        ResnetExportError: any of its kinds; see `runtimes.errors`.
    """
    steps = Steps(progress)
    precision = load_precision(plan.precision)
    if plan.calibrator is not None:
        find_observer(plan.calibrator)  # refused before the long work
    with staging_folder(plan.output, force=plan.force) as folder:
        with steps("weights"):
            loaded = with_features(load_model(plan.model_request), plan.features)
            for what in loaded.left_out:
                steps.left_out(what)
            if plan.uint8_input == FULL:
                check_resizable(loaded.preprocess)
            calibration = calibration_set(loaded, plan)
            plain = images_of_one_colour(loaded.preprocess, as_pixels=plan.uint8_input is not None)
            images = replace(proof_images(loaded, plan, steps), plain=plain)
        with steps("trace"):
            if plan.spec.source in OTHERS_CODE:
                check_steady(loaded.module, images.inputs[0], plan.model)
            program = program_from_module(loaded.module, loaded.preprocess.shape)
        form = GraphForm(plan.opset, plan.batch, output_names(loaded.module), plan.uint8_input is not None, plan.uint8_input == FULL)
        clean = clean_graph(program, form, loaded.preprocess, images.inputs, steps)
        lowered = lower(clean, calibration, plan.lowering_request, steps)
        clean, model = (with_resize(graph, form, loaded.preprocess) for graph in (clean, lowered.model))
        with steps("save"):
            onnx.helper.set_model_props(model, {"precision": plan.precision})  # read by who gets no more than the file
            onnx.save(model, folder / "model.onnx")
            save_program(program, folder / "reference.pt2", form.outputs)
        with steps("prove"):
            # What no backend here runs is read back, so that the simulation is of what was written.
            graphs = Graphs(clean, precision.simulated(model if precision.RUNS_ON else onnx.load(folder / "model.onnx")))
            proof = golden = prove(folder, images, graphs, budget=precision.BUDGET, batch=plan.batch, backends=precision.RUNS_ON, progress=progress)
            kept = of_fitting_size(images, loaded.preprocess, GOLDEN_IMAGES[-1]) if plan.uint8_input == FULL else images
            if kept is not images:  # built-in pictures have the network's size: what travels is to be resized
                golden = prove(folder, kept, graphs, budget=precision.BUDGET, batch=plan.batch, backends=precision.RUNS_ON, progress=progress)
        with steps("follow blocks"):
            exact = with_correction(clean, lowered.table, plan.lowering_request.calibrator_name)
            both = BothSides(program, clean, exact, model, graphs.simulation, bool(precision.RUNS_ON))
            drift = _drift(both, images, precision.BUDGET)
        with steps("write"):
            _write_rest(folder, plan, loaded, kept, golden.outputs)
            if lowered.table:
                (folder / "calibration.json").write_bytes(lowered.table.json())
            manifest = _manifest(plan, loaded, model, proof, lowered.table)
            (folder / REPORT).write_bytes(page_from_proof(Bundle(folder, replace(manifest, files=files_of(folder))), images, proof, drift))
            manifest = finish(folder, manifest)
    return Export(plan.output, manifest, steps.seconds, images.no_accuracy)


def _drift(both: BothSides, images: Images, budget: Budget) -> Drift | None:
    """The drift block by block, for the report; None for a network whose blocks cannot be told."""
    try:
        return drift_between(both, images.fed[:DRIFT_IMAGES], images.inputs[:DRIFT_IMAGES], budget)
    except PlanError:
        return None


def _write_rest(folder: Path, plan: ExportPlan, loaded: LoadedModel, images: Images, outputs: Outputs) -> None:
    if not plan.reference:
        (folder / "reference.pt2").unlink()
    golden = {"inputs": images.fed, **outputs}
    fewest, most = GOLDEN_IMAGES
    count = min(most, max(FEWEST_GOLDEN_FEATURES if plan.features else fewest, GOLDEN_BYTES // sum(values[0].nbytes for values in golden.values())))
    golden = {name: values[:count] for name, values in golden.items()}
    if images.labels is not None:
        golden["labels"] = images.labels[:count]
    np.savez_compressed(folder / "golden.npz", **golden)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    if loaded.labels is not None:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in loaded.labels), encoding="utf-8")


def _manifest(plan: ExportPlan, loaded: LoadedModel, model: onnx.ModelProto, proof: Proof, table: CalibrationTable | None) -> Manifest:
    import onnxruntime

    packages = (*PACKAGES, *(("timm",) if loaded.facts.source == "timm" else ()))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        precision=plan.precision,
        target=plan.target,
        opset=plan.opset,
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}, "onnxruntime": onnxruntime.__version__},
        model=loaded.facts,
        inputs=tensor_specs(model.graph.input),
        outputs=tensor_specs(model.graph.output),
        batch=plan.batch,
        preprocess=loaded.preprocess,
        graph=graph_facts(model),
        parity=proof.report,
        accuracy=proof.accuracy,
        calibration=CalibrationFacts(plan.lowering_request.calibrator_name, table.images, table.fingerprint) if table else None,
    )
