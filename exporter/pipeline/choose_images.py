"""Choose the images that an export calibrates on, and those that it proves itself with."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.classes import ModelClasses, labels_or_reason
from calibration.data import ImageSource, Split, built_in, check_channels, open_source, with_channels
from calibration.order import order_evenly
from exporter.lowering.ranges import CalibrationSet, chosen_places
from exporter.models.loaded import Loaded
from exporter.pipeline.load_file import LoadedFile
from exporter.pipeline.loss_target import LossTarget
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.proof_images import PictureReader, ProofImages
from exporter.pipeline.terms import check_limits_apply, fewest_to_decide
from runtimes.errors import BadInput, PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.intervals import SMALLEST_LOOK
from runtimes.preprocess import MODES
from runtimes.progress import Steps

FEWEST_IMAGES, MOST_IMAGES = 32, 2000
"""How many images to prove with: where each shows an error, and at most where images are counted."""
BLOCK = 64
"""How many images a proof holds in memory, made a multiple of the largest batch."""


def opened_data(plan: ExportPlan) -> ImageSource | None:
    """What --data names: listed once for all of an export, whose parts choose pictures by their places in it. None
    without it.

    Raises:
        BadInput: there are no pictures.
        StorageUnavailable: the storage cannot be read.
    """
    return None if plan.data is None else open_source(plan.data)


def calibration_set(loaded: Loaded, plan: ExportPlan, data: ImageSource | None) -> CalibrationSet:
    """The images to calibrate on; what is wrong with them is refused here, before the long work.

    Args:
        data: `opened_data` of the plan.

    Raises:
        PlanError: --data is needed, or has fewer images than --calibration-images asks for.
        BadInput: the images have other channels than the model.
    """
    request = plan.lowering_request
    source = None
    if is_measured(loaded, plan) and (request.calibration is None or data is not None):
        source = _calibration_source(loaded, plan) if data is None else data
        if request.calibration is None:
            chosen_places(source, request)
    return CalibrationSet(source, loaded.preprocess, as_pixels=plan.uint8_input is not None, data=plan.data)


def is_measured(loaded: Loaded, plan: ExportPlan) -> bool:
    """Are ranges measured, or read from a table? Not those of a file that keeps its own."""
    return plan.lowering_request.is_calibrated and not (isinstance(loaded, LoadedFile) and loaded.keeps_scales)


def proof_images(
    loaded: Loaded, plan: ExportPlan, data: ImageSource | None, budget: Budget, steps: Steps
) -> ProofImages:
    """The images to prove with, other ones than those of the calibration where there are enough; the first block is
    read.

    How many they are at most, `--proof-images` says. Without it, `MOST_IMAGES` where their classes are the model's, or
    where it takes many to judge the budget; elsewhere enough to fill the largest batch. `no_accuracy` says why accuracy
    is not measured. Images that cannot be read are left out, and named.

    Args:
        data: `opened_data` of the plan.
        budget: what the proof will be held to.

    Raises:
        BadInput: the images have other channels than the model, or none can be read.
        PlanError: --data has fewer images than --calibration-images asks for, or --budget has a limit that these images
            cannot decide.
    """
    source = _proof_source(loaded, plan, data, steps)
    labels, no_accuracy = _model_labels(source, loaded, plan)
    if no_accuracy:
        steps.left_out(f"accuracy, {no_accuracy}")
    check_limits_apply(plan, loaded, labels, no_accuracy)
    counts = budget.takes_confidence and plan.features is None
    is_trained = loaded.facts.weights.kind != "random"
    fewest = max(FEWEST_IMAGES, plan.batch.max)
    most = plan.proof_images or (MOST_IMAGES if counts or (labels is not None and is_trained) else fewest)
    if counts:  # the calibration's are left out only where the others can decide
        fewest = max(SMALLEST_LOOK, fewest_to_decide(budget, labelled=labels is not None))
    labelled = source if labels is None else replace(source, labels=labels)
    enough = min(most, fewest) if is_measured(loaded, plan) else None
    places = _proof_places(labelled, plan, enough)
    reader = PictureReader(replace(source, labels=labels), loaded.preprocess, plan.uint8_input, steps)
    images = ProofImages.reading(reader, places, most, _block_size(plan))
    return replace(images, no_accuracy=no_accuracy)


class PartedImages(NamedTuple):
    """Two parts of --data that share no image, and share none with the calibration: to choose which blocks return to
    FP16, and to prove the choice with."""

    choosing: ProofImages
    proof: ProofImages


def parted_images(
    loaded: Loaded, plan: ExportPlan, data: ImageSource | None, budget: Budget, steps: Steps
) -> PartedImages:
    """The images to choose blocks with, and to prove the choice with: of all that were not calibrated on, every other
    one, evenly over the classes.

    How many they are at most in each part, `--proof-images` says; without it, `MOST_IMAGES`, or more where the budget
    takes more.

    Args:
        data: `opened_data` of the plan.
        budget: what both are held to.

    Raises:
        BadInput: the images have other channels than the model, or none can be read.
        PlanError: there are too few to decide, or their classes are needed and not the model's.
    """
    target = plan.loss_target
    assert target is not None, "expected --max-drop or --min-agreement"
    source = _proof_source(loaded, plan, data, steps)
    labels, no_accuracy = _model_labels(source, loaded, plan)
    if target.wanted == "max_drop" and labels is None:
        raise PlanError(
            f"--max-drop counts right answers, and needs pictures whose classes are the model's"
            f"{f': {no_accuracy}' if no_accuracy else ', got pictures without classes'}; give such --data, or "
            "--min-agreement, which needs no classes"
        )
    if no_accuracy:
        steps.left_out(f"accuracy, {no_accuracy}")
    order = order_evenly(source.count, source.labels, plan.seed)
    others = order[~np.isin(order, chosen_places(source, plan.lowering_request))]
    needed = fewest_to_decide(budget, labelled=labels is not None)
    _check_enough(plan, target, needed, len(others))
    most = plan.proof_images or max(MOST_IMAGES, 2 * needed)
    reader = PictureReader(replace(source, labels=labels), loaded.preprocess, plan.uint8_input, steps)
    choosing, proof = (ProofImages.reading(reader, others[part::2], most, _block_size(plan)) for part in (0, 1))
    return PartedImages(*(replace(images, no_accuracy=no_accuracy, parts=2) for images in (choosing, proof)))


def _check_enough(plan: ExportPlan, target: LossTarget, needed: int, left: int) -> None:
    """Refuse parts of --data that are too small to show anything, however good the network."""
    where = f"{needed} to choose blocks with and {needed} to prove the choice with"
    so_many = f"so many it takes to show {target.text} where not one image changes its class"
    if left < 2 * needed:
        raise PlanError(
            f"expected {where} besides the images to calibrate on, got {left}; {so_many}: give more --data, or "
            f"{'a larger --max-drop' if target.wanted == 'max_drop' else 'a smaller --min-agreement'}"
        )
    if plan.proof_images is not None and plan.proof_images < needed:
        raise PlanError(
            f"expected --proof-images of at least {needed}, got {plan.proof_images}; {so_many}; leave it out"
        )


def _block_size(plan: ExportPlan) -> int:
    """How many images to hold in memory at a time."""
    if plan.features:
        return max(FEWEST_IMAGES, plan.batch.max)
    return -(-BLOCK // plan.batch.max) * plan.batch.max


def _calibration_source(loaded: Loaded, plan: ExportPlan) -> ImageSource:
    """The images to calibrate on where no --data is given.

    Raises:
        PlanError: --data is needed: the built-in images are not what this model was trained on.
    """
    if loaded.facts.weights.kind in ("default", "file"):
        raise PlanError(
            f"--int8 measures ranges on real images, and the built-in ones are not what {plan.model} was trained on; "
            "give --data with a folder of some 500 images like those it will see"
        )
    return _built_in_for(loaded, plan, "train")


def _proof_source(loaded: Loaded, plan: ExportPlan, data: ImageSource | None, steps: Steps) -> ImageSource:
    """All images that there are to prove with; reports what of them is left out.

    Raises:
        BadInput: they have other channels than the model.
    """
    source = _built_in_for(loaded, plan, "test") if data is None else data
    check_channels(source, loaded.preprocess)
    for problem in source.left_out:
        steps.left_out(problem)
    return source


def _built_in_for(loaded: Loaded, plan: ExportPlan, split: Split) -> ImageSource:
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


def _model_labels(source: ImageSource, loaded: Loaded, plan: ExportPlan) -> tuple[NDArray[np.int64] | None, str]:
    """The model's classes of the images, int64 (images,); or None, and why accuracy cannot be measured.

    The built-in images count as labelled only where the model's class names say so; nobody asked for them, so that
    nothing needs to be said where they do not.
    """
    if plan.data is None and loaded.labels is None:
        return None, ""
    labels, reason = labels_or_reason(source, ModelClasses(loaded.facts.classes, loaded.labels))
    return labels, reason if plan.data is not None else ""


def _proof_places(source: ImageSource, plan: ExportPlan, enough: int | None) -> NDArray[np.int64]:
    """The places of the images to prove with, in the order to take them in: of --data, evenly over the classes.

    Those that were calibrated on are left out if `enough` others are there; None where none were.
    """
    if plan.data is None:
        return np.arange(source.count)
    order = order_evenly(source.count, source.labels, plan.seed)
    if enough is None:
        return order
    others = order[~np.isin(order, chosen_places(source, plan.lowering_request))]
    return others if len(others) >= enough else order
