"""Load a model from a stranger's ONNX file, as `exporter.models.loading` loads one from a name or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.graph.intake.layout import Normalisation
from exporter.graph.intake.read import ModelFile, read_model_file, save_reference
from exporter.graph.intake.take import Opened, TakenFile, open_file, take_file
from exporter.models.labels import labels_for_classes, labels_from_metadata
from exporter.models.loaded import Loaded
from exporter.models.preprocessing import adjusted_preprocess
from exporter.models.request import ModelRequest
from runtimes.bundle import sha256_of_file
from runtimes.errors import PlanError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import Preprocess
from runtimes.source_file import SourceFileRuntime

SOURCE = "onnx"
IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
NAMES_UNDER = ("names", "classes", "labels", "class_names", "class_labels", "id2label", "categories")
"""Keys of a file's metadata under which tools write the names of its classes."""


@dataclass(frozen=True, kw_only=True)
class LoadedFile(Loaded):
    """A model from an ONNX file, which was taken in."""

    taken: TakenFile


def load_file(request: ModelRequest, folder: Path, *, opset: int, keep_softmax: bool = False) -> LoadedFile:
    """Read the ONNX file that is asked for, write it into a bundle's folder as `reference.onnx`, and take it in.

    Raises:
        BadInput: the file cannot be read, is no classifier or backbone of images, or was changed meanwhile; the labels
            are of another number.
        PlanError: its preprocessing is not told, or what is told contradicts the file.
        SimplifyError: a step changes what the graph computes.
    """
    file = read_model_file(Path(request.model))
    reference = folder / SourceFileRuntime.FILE
    save_reference(file, reference)
    metadata = {entry.key: entry.value for entry in file.model.metadata_props}
    opened = open_file(file)
    preprocess = _preprocess(opened, request)
    taken = take_file(opened, reference, preprocess, opset=opset, keep_softmax=keep_softmax)
    if opened.normalisation is not None:
        said = (
            f"its own normalisation kept: pixels of 0..{opened.normalisation.scale}, {_numbers(opened.normalisation)}"
        )
        taken = replace(taken, facts=replace(taken.facts, steps=(*taken.facts.steps, said), normalises=True))
    loaded = LoadedFile(
        facts=ModelFacts(file.name, SOURCE, SOURCE, taken.classes, WeightsFacts("file", sha256_of_file(reference))),
        preprocess=preprocess,
        labels=None,
        taken=taken,
    )
    return _with_labels(loaded, request, metadata, file)


def _preprocess(opened: Opened, request: ModelRequest) -> Preprocess:
    """How pictures are prepared for a file: by what is asked for, and by what the file itself does to them.

    Raises:
        PlanError: too little is told, or it contradicts the file.
    """
    name, size = opened.file.name, opened.image.size
    if size is None and request.image_size is None:
        raise PlanError(f"expected --image-size with {name}, got none: it takes pictures of several sizes")
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
            f"expected --mean and --std with {name}, got {given[0] + ' alone' if given else 'neither'}: the file "
            f"does not say what its pixels are to be; for a network trained as torchvision's are, {IMAGENET}; for pixels of "
            "0..255, as Caffe's, TensorFlow's and Keras's have, with --scale 255"
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
        raise PlanError(f"--num-classes says {request.classes}, but {file.name} has {classes} classes; leave it out")
    if request.labels is not None:
        if not classes:
            outputs = ", ".join(loaded.taken.outputs)
            raise PlanError(f"--labels is about classes, and {file.name} gives features ({outputs}); leave it out")
        return replace(loaded, labels=labels_for_classes(request.labels, classes))
    text = next((metadata[key] for key in NAMES_UNDER if key in metadata), None)
    if text is None or not classes:
        return loaded
    labels = labels_from_metadata(text)
    if labels is None or len(labels) != classes:
        got = "what is no list of names" if labels is None else f"{len(labels)} names"
        return replace(loaded, left_out=(f"class names of the file's metadata: {got}, and it has {classes} classes",))
    return replace(loaded, labels=labels)
