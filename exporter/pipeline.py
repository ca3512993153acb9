"""The order of steps from a plan to a bundle. The only module that writes files."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, check_channels, evenly_chosen, open_source
from calibration.observers import find_observer
from calibration.reading import Prepared, Unreadable, read_ahead
from calibration.table import CalibrationTable
from exporter.announce import Announce, silent
from exporter.answers import check_steady
from exporter.calibrate import Measured, built_in_for, calibrated, calibration_places, corrected, data_source
from exporter.drift import Drift, drift_between
from exporter.features import output_names, with_features
from exporter.graph import graph_facts, tensor_specs
from exporter.original import Original, with_correction
from exporter.pictures import fitted, images_of_any_size, images_of_one_colour
from exporter.plan import CALIBRATED, CALIBRATOR, FULL, ExportPlan, load_precision
from exporter.qdq.fit import TOO_SMALL
from exporter.qdq.placement import left_in_float
from exporter.report.exported import REPORT, page_from_proof
from exporter.resize import check_resizable, with_any_size
from exporter.simplify import SIMPLIFY_IMAGES, simplified
from exporter.trace import onnx_from_program, program_from_module, save_program
from exporter.uint8 import with_uint8_input
from exporter.verify import Graphs, Images, Outputs, Proof, prove
from exporter.weights import LoadedModel, load_model
from runtimes.budget import Budget
from runtimes.bundle import Bundle, files_of, finish, staging_folder
from runtimes.errors import BadInput, PlanError
from runtimes.manifest import SCHEMA_VERSION, CalibrationFacts, Manifest
from runtimes.picture_file import Picture
from runtimes.preprocess import image_from_pixels

PACKAGES = ("resnet-export", "torch", "torchvision", "onnx", "onnxscript", "onnxsim", "numpy", "pillow")
FEWEST_IMAGES, LABELLED_IMAGES = 32, 2000
DECODED_AHEAD = 4
HALVES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
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


class Steps:
    """Times the steps and announces each one to `announce`."""

    def __init__(self, announce: Announce) -> None:
        self.seconds: dict[str, float] = {}
        self.announce = announce
        self.said: set[str] = set()

    def left_out(self, problem: str) -> None:
        """Say once what is not taken (a picture, a convolution to quantize), and why."""
        if problem not in self.said:
            self.said.add(problem)
            self.announce(f"left out: {problem}")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.announce(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def export(plan: ExportPlan, announce: Announce = silent) -> Export:
    """Carry out a plan: the bundle at `plan.output` is complete and proven when this returns, and untouched when it raises.

    Args:
        plan: what to export.
        announce: told of the steps.

    Raises:
        ResnetExportError: any of its kinds; see `runtimes.errors`.
    """
    steps = Steps(announce)
    precision: Any = load_precision(plan.precision)
    budget: Budget = precision.BUDGET
    if plan.calibrator is not None:
        find_observer(plan.calibrator)  # refused before the long work
    with staging_folder(plan.output, force=plan.force) as folder:
        with steps("weights"):
            loaded = with_features(load_model(plan), plan.features)
            for what in loaded.left_out:
                steps.left_out(what)
            outputs = output_names(loaded.module)
            if plan.uint8_input == FULL:
                check_resizable(loaded.preprocess)
            plain = images_of_one_colour(loaded.preprocess, as_pixels=plan.uint8_input is not None)
            images = replace(_images(loaded, plan, steps), plain=plain)
        with steps("trace"):
            if plan.spec.source in OTHERS_CODE:
                check_steady(loaded.module, images.inputs[0], plan.model)
            program = program_from_module(loaded.module, loaded.preprocess.shape)
            traced = onnx_from_program(program, opset=plan.opset, batch=plan.batch, outputs=outputs)
        with steps("simplify"):
            clean = simplified(traced, images.inputs[:SIMPLIFY_IMAGES])
            if plan.uint8_input:
                clean = with_uint8_input(clean, loaded.preprocess)
        budget = max([budget, *_budgets_of_its_own(clean)], key=lambda one: one.own_error)
        measured, table = _measured(precision.observed(clean), clean, loaded, plan, steps), None
        with steps(f"lower to {plan.precision}"):
            if measured is None:
                model = precision.lower(clean, {})
            else:
                model, table = corrected(precision, clean, measured, loaded, plan)
                _say_what_stays_in_float(clean, model, steps)
        if plan.uint8_input == FULL:
            clean, model = (with_any_size(graph, loaded.preprocess) for graph in (clean, model))
        with steps("save"):
            onnx.helper.set_model_props(model, {"precision": plan.precision})  # read by who gets no more than the file
            onnx.save(model, folder / "model.onnx")
            save_program(program, folder / "reference.pt2", outputs)
        with steps("prove"):
            # What no backend here runs is read back, so that the simulation is of what was written.
            graphs = Graphs(clean, precision.simulated(model if precision.RUNS_ON else onnx.load(folder / "model.onnx")))
            proof = golden = prove(folder, images, graphs, budget=budget, batch=plan.batch, backends=precision.RUNS_ON)
            kept = fitted(images, loaded.preprocess, GOLDEN_IMAGES[-1]) if plan.uint8_input == FULL else images
            if kept is not images:  # built-in pictures have the network's size: what travels is to be resized
                golden = prove(folder, kept, graphs, budget=budget, batch=plan.batch, backends=precision.RUNS_ON)
        with steps("follow blocks"):
            both = Original(
                program, clean, with_correction(clean, table, plan.calibrator or CALIBRATOR), model, graphs.simulation, bool(precision.RUNS_ON)
            )
            drift = _drift(both, images, budget)
        with steps("write"):
            _write_rest(folder, plan, loaded, kept, golden.outputs)
            if table:
                (folder / "calibration.json").write_bytes(table.json())
            manifest = _manifest(plan, loaded, model, proof, table)
            (folder / REPORT).write_bytes(page_from_proof(Bundle(folder, replace(manifest, files=files_of(folder))), images, proof, drift))
            manifest = finish(folder, manifest)
    return Export(plan.output, manifest, steps.seconds, images.no_accuracy)


def _budgets_of_its_own(clean: onnx.ModelProto) -> list[Budget]:
    """What the network itself costs where it computes in half precision, whatever precision it is lowered to."""
    found = {helper.get_node_attr_value(node, "to") for node in clean.graph.node if node.op_type == "Cast"}
    found |= {tensor.data_type for tensor in clean.graph.initializer}
    return [load_precision(name).BUDGET for kind, name in HALVES.items() if kind in found]


def _drift(both: Original, images: Images, budget: Budget) -> Drift | None:
    """The drift block by block, for the report; None for a network whose blocks cannot be told."""
    try:
        return drift_between(both, images.fed[:DRIFT_IMAGES], images.inputs[:DRIFT_IMAGES], budget)
    except PlanError:
        return None


def _measured(tensors: Sequence[str], clean: onnx.ModelProto, loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Measured | None:
    if not tensors:
        return None
    with steps("calibrate"):
        return calibrated(clean, tensors, loaded, plan, lambda done, total: steps.announce("calibrate", done, total), steps.left_out)


def _say_what_stays_in_float(clean: onnx.ModelProto, lowered: onnx.ModelProto, steps: Steps) -> None:
    quantized = {name for node in lowered.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats = [node.name for node in lowered.graph.node if node.op_type == "Conv" and node.input[1] not in quantized]
    reasons = {**dict.fromkeys(floats, TOO_SMALL), **left_in_float(clean.graph)}
    convolutions = sum(node.op_type == "Conv" for node in clean.graph.node)
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, one in reasons.items() if one == reason]
        steps.left_out(f"{len(names)} of {convolutions} convolutions stay in FP16, {names[0]} the first: {reason}")


def _images(loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Images:
    """Pictures to prove with, others than those of the calibration where there are enough.

    Where their classes are the model's, up to LABELLED_IMAGES of them; else enough to fill the largest batch, and it is said why.
    """
    if plan.precision in CALIBRATED and plan.calibration is None:
        calibration_places(data_source(loaded, plan), plan)  # refused before the long work
    source = open_source(plan.data) if plan.data is not None else built_in_for(loaded, plan, "test")
    check_channels(source, loaded.preprocess)
    for problem in source.left_out:
        steps.left_out(problem)
    known, no_accuracy = _known_labels(source, loaded, plan)
    if no_accuracy:
        steps.left_out(f"accuracy, {no_accuracy}")
    if known is not None:
        source = replace(source, labels=known)
    fewest = max(FEWEST_IMAGES, plan.batch.max)
    count = LABELLED_IMAGES if known is not None else fewest
    if plan.data is not None:
        used = calibration_places(source, plan) if plan.precision in CALIBRATED else np.zeros(0, np.int64)
        others = np.setdiff1d(np.arange(source.count), used)
        source = source.chosen(others) if len(others) >= fewest else source
        source = source.chosen(evenly_chosen(source, count, plan.seed))
    labels = source.labels if known is not None else None
    if plan.uint8_input == FULL:
        whole = _readable(source, count, lambda picture: image_from_pixels(loaded.preprocess.picture(picture)), steps)
        return replace(images_of_any_size(whole, labels, loaded.preprocess, plan.opset), no_accuracy=no_accuracy)
    read = dict(_readable(source, count, loaded.preprocess.pixels, steps))
    inputs = np.empty((len(read), *loaded.preprocess.shape), np.float32)
    for row, pixels in zip(inputs, read.values(), strict=True):  # one by one: all at once would take as much memory again, twice
        row[:] = loaded.preprocess.normalised(pixels)
    kept = np.stack(list(read.values())) if plan.uint8_input else None
    return Images(inputs, None if labels is None else labels[list(read)], kept, no_accuracy)


def _known_labels(source: ImageSource, loaded: LoadedModel, plan: ExportPlan) -> tuple[NDArray[np.int64] | None, str]:
    """The model's classes of the pictures, or None and why. Nobody asked for the built-in ones: only names say that they are a model's."""
    if plan.data is None and loaded.labels is None:
        return None, ""
    labels, reason = labels_or_reason(source, ModelClasses(loaded.facts.classes, loaded.labels))
    return labels, reason if plan.data is not None else ""


def _readable(source: ImageSource, count: int, prepare: Callable[[Picture], Prepared], steps: Steps) -> Iterator[tuple[int, Prepared]]:
    """What `prepare` makes of the first `count` pictures that can be read, with their places; few are in memory at a time.

    Raises:
        BadInput: none can be read.
    """
    found = 0
    for place, one in enumerate(read_ahead(source, range(source.count), prepare, ahead=DECODED_AHEAD)):
        if isinstance(one, Unreadable):
            steps.left_out(one.reason)
            continue
        found += 1
        yield place, one
        if found == count:
            return
    if not found:
        raise BadInput(f"none of the {source.count} pictures of {source.name} can be read; give others")


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
        calibration=CalibrationFacts(plan.calibrator or CALIBRATOR, table.images, table.fingerprint) if table else None,
    )
