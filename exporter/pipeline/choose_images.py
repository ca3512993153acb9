"""Which pictures an export calibrates on and proves itself with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, Split, built_in, channelled, check_channels, evenly_chosen, open_source
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
    """The pictures to calibrate on; refused here, before the long work.

    Raises:
        PlanError: --data is needed, or has fewer pictures than --calibration-images asks for.
        BadInput: the pictures have other channels than the model.
    """
    request = plan.lowering_request
    source = None
    if request.is_calibrated and (request.calibration is None or plan.data is not None):
        source = _calibration_source(loaded, plan)
        if request.calibration is None:
            chosen_places(source, request)
    return CalibrationSet(source, loaded.preprocess, as_pixels=plan.uint8_input is not None)


def _calibration_source(loaded: LoadedModel, plan: ExportPlan) -> ImageSource:
    """The pictures to calibrate on.

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


def _built_in_for(loaded: LoadedModel, plan: ExportPlan, split: Split) -> ImageSource:
    """The built-in pictures, where no --data is given; for random weights of other channels than pictures have, each channel is another picture.

    Raises:
        BadInput: trained weights of such channels are not proven by grey pictures.
    """
    channels = loaded.preprocess.channels
    if channels not in MODES and loaded.facts.weights.kind != "random":
        raise BadInput(
            f"{plan.model} takes {channels} channels, and the built-in pictures are grey; give --data with pictures like those it was trained on, an "
            f".npz with images of uint8 (n, height, width, {channels}) or a folder of .npy files of (height, width, {channels})"
        )
    return built_in(split) if channels in MODES else channelled(built_in(split), channels)


def proof_images(loaded: LoadedModel, plan: ExportPlan, steps: Steps) -> Images:
    """Pictures to prove with, others than those of the calibration where there are enough.

    Where their classes are the model's, up to `LABELLED_IMAGES` of them; else enough to fill the largest batch, and it is said why.
    """
    source = open_source(plan.data) if plan.data is not None else _built_in_for(loaded, plan, "test")
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
        used = (
            chosen_places(source, plan.lowering_request)
            if plan.lowering_request.is_calibrated
            else np.zeros(0, np.int64)
        )
        others = np.setdiff1d(np.arange(source.count), used)
        source = source.chosen(others) if len(others) >= fewest else source
        source = source.chosen(evenly_chosen(source, count, plan.seed))
    labels = source.labels if known is not None else None
    if plan.uint8_input == FULL:
        whole = _readable(source, count, lambda picture: image_from_pixels(loaded.preprocess.picture(picture)), steps)
        return replace(images_of_any_size(whole, labels, loaded.preprocess, plan.opset), no_accuracy=no_accuracy)
    read = dict(_readable(source, count, loaded.preprocess.pixels, steps))
    inputs = np.empty((len(read), *loaded.preprocess.shape), np.float32)
    for row, pixels in zip(
        inputs, read.values(), strict=True
    ):  # one by one: all at once would take as much memory again, twice
        row[:] = loaded.preprocess.normalised(pixels)
    kept = np.stack(list(read.values())) if plan.uint8_input else None
    return Images(inputs, None if labels is None else labels[list(read)], kept, no_accuracy)


def _known_labels(source: ImageSource, loaded: LoadedModel, plan: ExportPlan) -> tuple[NDArray[np.int64] | None, str]:
    """The model's classes of the pictures, or None and why. Nobody asked for the built-in ones: only names say that they are a model's."""
    if plan.data is None and loaded.labels is None:
        return None, ""
    labels, reason = labels_or_reason(source, ModelClasses(loaded.facts.classes, loaded.labels))
    return labels, reason if plan.data is not None else ""


def _readable(
    source: ImageSource, count: int, prepare: Callable[[Picture], Prepared], steps: Steps
) -> Iterator[tuple[int, Prepared]]:
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
