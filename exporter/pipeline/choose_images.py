"""Choose the images that an export calibrates on, and those that it proves itself with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, Split, built_in, check_channels, choose_evenly, open_source, with_channels
from calibration.reading import Prepared, Unreadable, read_ahead
from exporter.lowering.ranges import CalibrationSet, chosen_places
from exporter.models.loaded import LoadedModel
from exporter.pipeline.images import Images
from exporter.pipeline.plan import FULL, ExportPlan
from exporter.pipeline.resize_proof import images_of_any_size
from runtimes.errors import BadInput, PlanError
from runtimes.picture_file import Picture
from runtimes.preprocess import MODES, image_from_pixels
from runtimes.progress import Steps

FEWEST_IMAGES, LABELLED_IMAGES = 32, 2000
DECODED_AHEAD = 4


def calibration_set(loaded: LoadedModel, plan: ExportPlan) -> CalibrationSet:
    """The images to calibrate on; what is wrong with them is refused here, before the long work.

    Raises:
        PlanError: --data is needed, or has fewer images than --calibration-images asks for.
        BadInput: the images have other channels than the model.
    """
    request = plan.lowering_request
    source = None
    if request.is_calibrated and (request.calibration is None or plan.data is not None):
        source = _calibration_source(loaded, plan)
        if request.calibration is None:
            chosen_places(source, request)
    return CalibrationSet(source, loaded.preprocess, as_pixels=plan.uint8_input is not None, data=plan.data)


def proof_images(loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Images:
    """The images to prove with, other ones than those of the calibration where there are enough.

    Where their classes are the model's, up to `LABELLED_IMAGES` of them. Elsewhere enough to fill the largest batch;
    `Images.no_accuracy` then says why accuracy is not measured. Images that cannot be read are left out, and named.

    Raises:
        BadInput: the images have other channels than the model, or none can be read.
        PlanError: --data has fewer images than --calibration-images asks for.
    """
    source = _proof_source(loaded, plan, steps)
    labels, no_accuracy = _model_labels(source, loaded, plan)
    if no_accuracy:
        steps.left_out(f"accuracy, {no_accuracy}")
    fewest = max(FEWEST_IMAGES, plan.batch.max)
    count = LABELLED_IMAGES if labels is not None else fewest
    if labels is not None:
        source = replace(source, labels=labels)
    if plan.data is not None:
        source = _without_calibration_images(source, plan, fewest)
        source = source.subset(choose_evenly(source, count, plan.seed))
    if labels is None:
        source = replace(source, labels=None)  # classes that are not the model's
    read = _read_whole if plan.uint8_input == FULL else _read_network_size
    return replace(read(source, count, loaded, plan, steps), no_accuracy=no_accuracy)


def _calibration_source(loaded: LoadedModel, plan: ExportPlan) -> ImageSource:
    """The images to calibrate on.

    Raises:
        PlanError: --data is needed: the built-in images are not what this model was trained on.
    """
    if plan.data is not None:
        return open_source(plan.data)
    if loaded.facts.weights.kind in ("default", "file"):
        raise PlanError(
            f"--int8 measures ranges on real images, and the built-in ones are not what {plan.model} was trained on; "
            "give --data with a folder of some 500 images like those it will see"
        )
    return _built_in_for(loaded, plan, "train")


def _proof_source(loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> ImageSource:
    """All images that there are to prove with; reports what of them is left out.

    Raises:
        BadInput: they have other channels than the model.
    """
    source = open_source(plan.data) if plan.data is not None else _built_in_for(loaded, plan, "test")
    check_channels(source, loaded.preprocess)
    for problem in source.left_out:
        steps.left_out(problem)
    return source


def _built_in_for(loaded: LoadedModel, plan: ExportPlan, split: Split) -> ImageSource:
    """The built-in images, used where no --data is given.

    A model with random weights that takes other numbers of channels than pictures have gets another picture in each.

    Raises:
        BadInput: trained weights take such channels; grey pictures would prove nothing of them.
    """
    channels = loaded.preprocess.channels
    if channels not in MODES and loaded.facts.weights.kind != "random":
        raise BadInput(
            f"{plan.model} takes {channels} channels, and the built-in pictures are grey; give --data with pictures "
            f"like those it was trained on, an .npz with images of uint8 (n, height, width, {channels}) or a folder of "
            f".npy files of (height, width, {channels})"
        )
    return built_in(split) if channels in MODES else with_channels(built_in(split), channels)


def _model_labels(source: ImageSource, loaded: LoadedModel, plan: ExportPlan) -> tuple[NDArray[np.int64] | None, str]:
    """The model's classes of the images, int64 (images,); or None, and why accuracy cannot be measured.

    The built-in images count as labelled only where the model's class names say so; nobody asked for them, so that
    nothing needs to be said where they do not.
    """
    if plan.data is None and loaded.labels is None:
        return None, ""
    labels, reason = labels_or_reason(source, ModelClasses(loaded.facts.classes, loaded.labels))
    return labels, reason if plan.data is not None else ""


def _without_calibration_images(source: ImageSource, plan: ExportPlan, fewest: int) -> ImageSource:
    """The images that were not calibrated on; all of them where fewer than `fewest` would be left."""
    if not plan.lowering_request.is_calibrated:
        return source
    others = np.setdiff1d(np.arange(source.count), chosen_places(source, plan.lowering_request))
    return source.subset(others) if len(others) >= fewest else source


def _read_whole(source: ImageSource, count: int, loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Images:
    """The first `count` images in a size that the graph itself resizes."""
    preprocess = loaded.preprocess
    images = _read_first(source, count, lambda picture: image_from_pixels(preprocess.picture(picture)), steps)
    return images_of_any_size(images, source.labels, preprocess, plan.opset)


def _read_network_size(source: ImageSource, count: int, loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Images:
    """The first `count` images, resized and cropped to the network's input."""
    preprocess = loaded.preprocess
    read = dict(_read_first(source, count, preprocess.pixels, steps))
    inputs = np.empty((len(read), *preprocess.shape), np.float32)
    # One by one: all at once would take as much memory again, twice.
    for row, pixels in zip(inputs, read.values(), strict=True):
        row[:] = preprocess.normalise(pixels)
    labels = None if source.labels is None else source.labels[list(read)]
    return Images(inputs, labels, np.stack(list(read.values())) if plan.uint8_input else None)


def _read_first(
    source: ImageSource, count: int, prepare: Callable[[Picture], Prepared], steps: Steps
) -> Iterator[tuple[int, Prepared]]:
    """Apply `prepare` to the first `count` images that can be read: their places and results, few in memory at a time.

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
