"""Measure the ranges that a precision needs on a calibration set, or read them from a table of an earlier export."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.collect import BATCH, collect
from calibration.data import ImageSource, check_channels, choose_evenly
from calibration.sample import Sample
from calibration.table import CalibrationTable, Provenance, table_from_file, table_from_histograms
from exporter.lowering.request import LoweringRequest
from runtimes.errors import BadInput, CalibrationError, PlanError
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps

CALIBRATION_IMAGES, CORRECTION_IMAGES = 512, 64
"""How many pictures the ranges are measured on by default, and how many of those the bias correction is measured on."""
PACKAGES = ("resnet-export", "numpy", "pillow")
"""Whose versions a table records, besides onnxruntime's."""


@dataclass(frozen=True)
class CalibrationSet:
    """The pictures to calibrate on, and how to feed them to a graph.

    Attributes:
        source: all pictures, of which `chosen_places` chooses some; None if a table is given without pictures.
        as_pixels: the graph has the preprocessing inside, and takes uint8 pixels.
        data: what `--data` says, for messages; None where it is not given.
    """

    source: ImageSource | None
    preprocess: Preprocess
    as_pixels: bool
    data: str | None = None

    def as_inputs(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
        """Turn normalised batches, float32 (images, channels, height, width), into what the graph takes."""
        for batch in batches:
            yield self.preprocess.pixels_from_inputs(batch) if self.as_pixels else batch


@dataclass(frozen=True)
class MeasuredRanges:
    """The ranges of a graph's tensors.

    Attributes:
        table: the ranges, measured or given.
        pictures: some of those that they were measured on, spread over all: uint8 (pictures, height, width, channels),
            of the model's size; None if a table is given without pictures.
    """

    table: CalibrationTable
    pictures: NDArray[np.uint8] | None


def measure_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest, steps: Steps
) -> MeasuredRanges:
    """Measure the ranges of `tensors` in the simplified FP32 graph, or take them from `request.calibration`.

    Each picture is read once.

    Args:
        steps: told of each picture that is done, and of those left out because they cannot be read.

    Raises:
        CalibrationError: there are too few images, or a given table is of another model or other images.
        BadInput: a picture or the table cannot be read, or the pictures have other channels than the model.
    """
    import onnxruntime

    versions = {**{name: version(name) for name in PACKAGES}, "onnxruntime": onnxruntime.__version__}
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    provenance = Provenance(digest, images.preprocess, versions)
    if request.calibration is not None:
        return _read_table(request.calibration, provenance, tensors, images, request)
    sample = _open_sample(images, request)
    total, done = sample.source.count, 0

    def count() -> None:
        nonlocal done
        done += 1
        steps.progress("calibrate", done, total)

    histograms = collect(model, tensors, images.as_inputs(sample.batches(BATCH, count)))
    for problem in sample.unreadable:
        steps.left_out(problem)
    sample.check(allow_few=request.allow_few_images)
    table = table_from_histograms(histograms, provenance, images=sample.images, fingerprint=sample.fingerprint)
    return MeasuredRanges(table, np.stack(sample.kept))


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


def _open_sample(images: CalibrationSet, request: LoweringRequest) -> Sample:
    source = images.source
    assert source is not None
    check_channels(source, images.preprocess)
    return Sample(source.subset(chosen_places(source, request)), images.preprocess, keep=CORRECTION_IMAGES)


def _read_table(
    path: Path, provenance: Provenance, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest
) -> MeasuredRanges:
    table = table_from_file(path)
    provenance.check(table, str(path))
    missing = [name for name in tensors if name not in table.tensors]
    if missing:
        raise BadInput(f"{path} has no range for {', '.join(missing[:3])}; leave --calibration out to measure again")
    if images.source is None:
        return MeasuredRanges(table, None)
    sample = _open_sample(images, request)
    for _ in sample.batches(BATCH):
        pass
    if sample.fingerprint != table.fingerprint:
        raise CalibrationError(
            f"{path} was measured on other images than {images.data}: fingerprint {table.fingerprint[:16]}..., "
            f"expected {sample.fingerprint[:16]}...; leave --calibration out to measure again"
        )
    return MeasuredRanges(table, np.stack(sample.kept))
