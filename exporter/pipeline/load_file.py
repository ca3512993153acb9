"""Load a model from a stranger's ONNX file, as `exporter.models.loading` loads one from a name or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.graph.intake.layout import Normalisation
from exporter.graph.intake.read import ModelFile, read_model_file, save_reference, with_other_graph
from exporter.graph.intake.take import Opened, TakenFile, open_file, take_file
from exporter.lowering.requantize.mend import dequantized, is_quantized, with_pairs
from exporter.lowering.requantize.operators import is_on_integers
from exporter.models.labels import labels_for_classes, labels_from_metadata
from exporter.models.loaded import Loaded
from exporter.models.preprocessing import adjusted_preprocess
from exporter.models.request import ModelRequest
from exporter.pipeline.plan import ONNX, ExportPlan
from runtimes.errors import PlanError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import Preprocess
from runtimes.printable import count_text
from runtimes.source_file import DEQUANTIZED, KEPT, QuantizedFile
from runtimes.source_runtime import SourceFileRuntime

IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
NAMES_UNDER = ("names", "classes", "labels", "class_names", "class_labels", "id2label", "categories")
"""Keys of a file's metadata under which tools write the names of its classes."""


@dataclass(frozen=True, kw_only=True)
class LoadedFile(Loaded):
    """A model from an ONNX file, which was taken in."""

    taken: TakenFile

    @property
    def keeps_scales(self) -> bool:
        """It is quantized already, and stays so."""
        return self.taken.facts.keeps_scales

    def with_steps(self, said: tuple[str, ...]) -> LoadedFile:
        """The same, with more of what was done to the file."""
        facts = replace(self.taken.facts, steps=(*self.taken.facts.steps, *said))
        return replace(self, taken=replace(self.taken, facts=facts))


def load_file(plan: ExportPlan, folder: Path) -> LoadedFile:
    """Read the ONNX file that is asked for, write it into a bundle's folder as `reference.onnx`, and take it in.

    Raises:
        BadInput: the file cannot be read, is no classifier or backbone of images, or was changed meanwhile; the labels
            are of another number.
        PlanError: its preprocessing is not told, what is told contradicts the file, or the file is quantized and the
            plan is not for such a one.
        SimplifyError: a step changes what the graph computes.
    """
    request = plan.model_request
    file = read_model_file(Path(request.model))
    metadata = {entry.key: entry.value for entry in file.model.metadata_props}
    quantized = _quantized(plan, file)
    if quantized == DEQUANTIZED:
        file = with_other_graph(file, dequantized(file.model))
    reference = folder / SourceFileRuntime.FILE
    save_reference(file, reference)
    on_integers = sum(map(is_on_integers, file.model.graph.node))
    if quantized == KEPT:
        file = replace(file, model=with_pairs(file.model), is_quantized=True)
    opened = open_file(file)
    preprocess = _preprocess(opened, request)
    taken = take_file(opened, reference, preprocess, opset=plan.opset, keep_softmax=plan.keep_softmax)
    facts = replace(taken.facts, quantized=quantized)
    if quantized == KEPT and on_integers:
        said = f"{count_text(on_integers, 'operator')} on integers written in floats between Q/DQ pairs"
        facts = replace(facts, steps=(said, *facts.steps))
    if quantized == DEQUANTIZED:
        facts = replace(
            facts, steps=("quantization removed: the float network behind it is the reference", *facts.steps)
        )
    if (own := opened.normalisation) is not None:
        said = f"its own normalisation kept: pixels of 0..{own.scale}, {_numbers(own)}"
        facts = replace(facts, steps=(*facts.steps, said), normalises=True)
    taken = replace(taken, facts=facts)
    weights = WeightsFacts("file", file.sha256)
    loaded = LoadedFile(
        facts=ModelFacts(file.name, ONNX, ONNX, taken.classes, weights), preprocess=preprocess, labels=None, taken=taken
    )
    return _with_labels(loaded, request, metadata, file)


def _quantized(plan: ExportPlan, file: ModelFile) -> QuantizedFile:
    """What becomes of the quantization of a file; empty for a float one.

    Raises:
        PlanError: the plan says nothing of it, or means another file.
    """
    option = "--recalibrate" if plan.recalibrate else "--dequantize" if plan.dequantize else ""
    if not is_quantized(file.model):
        if option:
            raise PlanError(f"{option} is about files that are quantized already, and {file.name} is not; leave it out")
        return ""
    if option:
        return DEQUANTIZED
    if plan.precision != "int8":
        raise PlanError(
            f"{file.name} is quantized already, and --{plan.precision} is not; take --int8, which keeps its scales, or "
            "add --dequantize for the float network behind it"
        )
    measured = {
        "--calibrator": plan.calibrator,
        "--calibration": plan.calibration,
        "--calibration-images": plan.calibration_images,
        "--max-drop": plan.max_drop,
        "--min-agreement": plan.min_agreement,
    }
    given = next((name for name, value in measured.items() if value is not None), None)
    if given is not None:
        raise PlanError(
            f"{given} is about ranges that are measured, and {file.name} is quantized already, so that its own are "
            "kept; add --recalibrate to measure anew, or leave it out"
        )
    return KEPT


def _preprocess(opened: Opened, request: ModelRequest) -> Preprocess:
    """How pictures are prepared for a file: by what is asked for, and by what the file itself does to them.

    Raises:
        PlanError: too little is told, or it contradicts the file.
    """
    name, size = opened.file.name, opened.image.size
    if size is None and request.image_size is None:
        raise PlanError(
            f"expected --image-size with {name}, got none: the file leaves height and width open; give those it "
            "was trained at, such as --image-size 224 or 48x192"
        )
    if size is not None and request.image_size not in (None, size):
        asked = "x".join(map(str, request.image_size or ()))
        raise PlanError(
            f"--image-size says {asked}, but {name} takes pictures of {size[0]}x{size[1]} alone; leave it out"
        )
    own = opened.normalisation
    given = [option for option, value in (("--mean", request.mean), ("--std", request.std)) if value]
    if own is not None and given:
        raise PlanError(
            f"{' and '.join(given)} would normalise pixels that {name} normalises itself (pixels of 0..{own.scale}, "
            f"{_numbers(own)}); leave {'them' if len(given) > 1 else 'it'} out"
        )
    if own is None and len(given) < 2:
        raise PlanError(
            f"expected --mean and --std with {name}, got {given[0] + ' alone' if given else 'neither'}: the file does "
            f"not say what its pixels are to be; for a network trained as torchvision's are, {IMAGENET}; for pixels "
            "of 0..255, as Caffe's, TensorFlow's and Keras's have, with --scale 255"
        )
    height, width = request.image_size or size or (0, 0)
    scale = own.scale if own is not None else 1
    neutral = Preprocess((height, width), (height, width), "bilinear", True, (0.0,), (1 / scale,))
    return adjusted_preprocess(neutral, replace(request, image_size=(height, width)), opened.channels)


def _numbers(own: Normalisation) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (own.mean, own.std))
    return f"mean {mean}, std {std}"


def _with_labels(loaded: LoadedFile, request: ModelRequest, metadata: Mapping[str, str], file: ModelFile) -> LoadedFile:
    """With the class names that are given, or that the file's metadata holds and that fit.

    Raises:
        BadInput: those that are given are of another number, or the file gives no classes.
        PlanError: --num-classes says another number.
    """
    classes = loaded.facts.classes
    if request.classes not in (None, classes):
        has = f"has {classes} classes" if classes else "gives features"
        raise PlanError(f"--num-classes says {request.classes}, but {file.name} {has}; leave it out")
    if request.labels is not None:
        if not classes:
            outputs = ", ".join(loaded.taken.outputs)
            raise PlanError(f"--labels is about classes, and {file.name} gives features ({outputs}); leave it out")
        return replace(loaded, labels=labels_for_classes(request.labels, classes))
    if not classes:
        return loaded
    found = [labels_from_metadata(metadata[key]) for key in NAMES_UNDER if metadata.get(key)]
    labels = next((names for names in found if names is not None and len(names) == classes), None)
    if labels is None and found:
        got = "no list of names" if found[0] is None else f"{len(found[0])} names"
        return replace(loaded, left_out=(f"class names of the file's metadata: {got}, and it has {classes} classes",))
    return replace(loaded, labels=labels)
