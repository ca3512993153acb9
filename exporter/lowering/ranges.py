"""Measure the ranges that a precision needs on a calibration set, or read them from a table of an earlier export."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.counting import OpenCounter, count_images
from calibration.data import ImageSource, check_channels, choose_evenly
from calibration.distributed.local import LOCAL, Local
from calibration.distributed.seen import first_readable
from calibration.distributed.shards import Executor
from calibration.order import spread_places
from calibration.reading import Unreadable, check_readable, read_ahead
from calibration.table import CalibrationTable, Provenance, table_from_file, table_from_histograms
from exporter.lowering.equalize import bias_sizes, streams
from exporter.lowering.registry import load_precision
from exporter.lowering.request import LoweringRequest
from runtimes.errors import BadInput, CalibrationError, PlanError
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps

CALIBRATION_IMAGES, FEW_PICTURES = 512, 128
"""How many pictures the ranges are measured on by default, and on how many of those other things are measured."""
DECODED_AHEAD = 4
PACKAGES = ("resnet-export", "numpy", "pillow")
"""Whose versions a table records, besides onnxruntime's."""


@dataclass(frozen=True)
class CalibrationSet:
    """The pictures to calibrate on, and how to feed them to a graph.

    Attributes:
        source: all pictures, of which `chosen_places` chooses some; None if a table is given without pictures.
        as_pixels: the graph has the preprocessing inside, and takes uint8 pixels.
        data: what `--data` says, for messages; None where it is not given.
        executor: where they are read and run.
    """

    source: ImageSource | None
    preprocess: Preprocess
    as_pixels: bool
    data: str | None = None
    executor: Executor = field(default=LOCAL, repr=False)


def measure_ranges(
    clean: onnx.ModelProto, exact: onnx.ModelProto, images: CalibrationSet, request: LoweringRequest, steps: Steps
) -> CalibrationTable:
    """Measure the ranges of the tensors that the request's precision observes.

    Each picture is read once.

    Args:
        clean: the simplified FP32 graph, which the table names.
        exact: the same with its channels equalized, which is run.
        steps: told of each picture that is done, and of those left out because they cannot be read.

    Raises:
        CalibrationError: there are too few images, or they are no pictures.
        BadInput: the pictures have other channels than the model.
    """
    tensors = load_precision(request.precision).observed_tensors(exact, request.target)
    task, done = _counter(exact, tensors, images, request), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        steps.progress("calibrate", done, task.source.count)

    seen, histograms = count_images(task, images.executor, tell)
    for problem in seen.unreadable:
        steps.left_out(problem)
    seen.check(allow_few=request.allow_few_images)
    provenance = _provenance(clean, images)
    return table_from_histograms(histograms, provenance, images=seen.images, fingerprint=seen.fingerprint)


def few_inputs(images: CalibrationSet, request: LoweringRequest) -> NDArray[Any] | None:
    """A few of the pictures that are calibrated on, spread evenly over them, as the graph takes them, (pictures, ...).

    Those that cannot be read are left out. None where there are no pictures, but a table.

    Raises:
        BadInput: the pictures have other channels than the model.
        CalibrationError: none of the few can be read.
    """
    if images.source is None:
        return None
    check_channels(images.source, images.preprocess)
    chosen = chosen_places(images.source, request)
    places = chosen[spread_places(len(chosen), FEW_PICTURES)]
    read = read_ahead(images.source, map(int, places), images.preprocess.pixels, ahead=DECODED_AHEAD)
    pixels, unreadable = [], []
    for one in read:
        if isinstance(one, Unreadable):
            unreadable.append(one.reason)
        else:
            pixels.append(one)
    if not pixels:
        check_readable(unreadable, len(places))
    stacked = np.stack(pixels)
    return stacked if images.as_pixels else images.preprocess.normalise(stacked)


def chosen_places(source: ImageSource, request: LoweringRequest) -> NDArray[np.int64]:
    """Choose the pictures of a source to calibrate on: their places in it, int64 (pictures,).

    Raises:
        PlanError: --calibration-images asks for more than there are.
    """
    if request.calibration_images is not None and request.calibration_images > source.count:
        raise PlanError(
            f"--calibration-images asks for {request.calibration_images}, "
            f"but {source.name} has {source.count}; ask for fewer"
        )
    return choose_evenly(source, request.calibration_images or CALIBRATION_IMAGES, request.seed)


def _counter(
    model: onnx.ModelProto, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest
) -> OpenCounter:
    """What counts the tensors of a graph on the pictures to calibrate on."""
    source = images.source
    assert source is not None
    check_channels(source, images.preprocess)
    chosen = source.subset(chosen_places(source, request))
    readable = None if isinstance(images.executor, Local) else first_readable(chosen)
    return OpenCounter(chosen, images.preprocess, model, tensors, images.as_pixels, readable)


def given_table(
    clean: onnx.ModelProto, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest
) -> CalibrationTable:
    """The table that `request.calibration` names.

    Args:
        tensors: whose ranges it must have.
        images: if there are some, those that it was measured on.

    Raises:
        CalibrationError: it is of another model or other images.
        BadInput: it cannot be read, or is damaged.
    """
    path = request.calibration
    assert path is not None
    table = table_from_file(path)
    _provenance(clean, images).check(table, str(path))
    missing = [name for name in tensors if name not in table.tensors]
    if missing:
        raise BadInput(f"{path} has no range for {', '.join(missing[:3])}; leave --calibration out to measure again")
    _check_sizes(clean, table, path)
    if images.source is None:
        return table
    seen, _ = count_images(_counter(clean, (), images, request), images.executor)
    if seen.fingerprint != table.fingerprint:
        so_many = f"give --calibration-images {table.images}, or " if seen.images != table.images else ""
        raise CalibrationError(
            f"{path} was measured on other images than {images.data}: fingerprint {table.fingerprint[:16]}..., "
            f"expected {seen.fingerprint[:16]}...; {so_many}leave --calibration out to measure again"
        )
    return table


def _provenance(clean: onnx.ModelProto, images: CalibrationSet) -> Provenance:
    import onnxruntime

    versions = {**{name: version(name) for name in PACKAGES}, "onnxruntime": onnxruntime.__version__}
    digest = hashlib.sha256(clean.SerializeToString(deterministic=True)).hexdigest()
    return Provenance(digest, images.preprocess, versions)


def _check_sizes(clean: onnx.ModelProto, table: CalibrationTable, path: Path) -> None:
    """Refuse factors and corrections that the graph has no channels for.

    Raises:
        BadInput: names the first.
    """
    channels = {stream.tensors[0]: stream.channels for stream in streams(clean)}
    biased = bias_sizes(clean)
    found = [*table.factors.items(), *(pair for each in table.corrections.values() for pair in each.items())]
    for name, values in found:
        if len(values) != (channels if name in table.factors else biased).get(name):
            raise BadInput(
                f"{path} has {len(values)} values for '{name}', which the model has not; leave --calibration out to "
                "measure again"
            )
