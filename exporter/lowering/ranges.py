"""The ranges that a precision needs: measured on a calibration set, or read from a table that was."""

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
PACKAGES = ("resnet-export", "numpy", "pillow")


@dataclass(frozen=True)
class CalibrationSet:
    """The pictures to calibrate on, and how a graph takes them.

    Attributes:
        source: all that there are, of which `chosen_places` says which are taken; None where a table is given without pictures.
        as_pixels: the graph has the preprocessing inside, and is fed uint8 pixels.
    """

    source: ImageSource | None
    preprocess: Preprocess
    as_pixels: bool

    def fed(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
        """Batches as the graph takes them."""
        for batch in batches:
            yield self.preprocess.pixels_from_inputs(batch) if self.as_pixels else batch


@dataclass(frozen=True)
class Measured:
    """The ranges of a graph.

    Attributes:
        table: measured, or given.
        pictures: some of those it was measured on, spread over all, uint8 (pictures, height, width, channels), of the model's size; None where a
            table is given without pictures.
    """

    table: CalibrationTable
    pictures: NDArray[np.uint8] | None


def measure_ranges(model: onnx.ModelProto, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest, steps: Steps) -> Measured:
    """The table for `tensors` of the simplified FP32 graph, and some of the pictures it is of. Each picture is read once.

    Args:
        steps: told of each picture that is done, and of those that are left out because they cannot be read.

    Raises:
        CalibrationError: the images, or a given table, do not do.
        BadInput: a picture or the table cannot be read, or the pictures have other channels than the model.
    """
    import onnxruntime

    versions = {**{name: version(name) for name in PACKAGES}, "onnxruntime": onnxruntime.__version__}
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    provenance = Provenance(digest, images.preprocess, versions)
    if request.calibration is not None:
        return _reused(request.calibration, provenance, tensors, images, request)
    sample = _sample(images, request)
    total, done = sample.source.count, 0

    def count() -> None:
        nonlocal done
        done += 1
        steps.progress("calibrate", done, total)

    histograms = collect(model, tensors, images.fed(sample.batches(BATCH, count)))
    for problem in sample.unreadable:
        steps.left_out(problem)
    sample.check(allow_few=request.allow_few_images)
    table = table_from_histograms(histograms, provenance, images=sample.images, fingerprint=sample.fingerprint)
    return Measured(table, np.stack(sample.kept))


def chosen_places(source: ImageSource, request: LoweringRequest) -> NDArray[np.int64]:
    """Which of a source's pictures are calibrated on.

    Raises:
        PlanError: --calibration-images asks for more than there are.
    """
    if request.calibration_images is not None and request.calibration_images > source.count:
        raise PlanError(f"--calibration-images asks for {request.calibration_images}, but {source.name} has {source.count}; ask for fewer")
    return choose_evenly(source, request.calibration_images or CALIBRATION_IMAGES, request.seed)


def _sample(images: CalibrationSet, request: LoweringRequest) -> Sample:
    source = images.source
    assert source is not None
    check_channels(source, images.preprocess)
    return Sample(source.subset(chosen_places(source, request)), images.preprocess, keep=CORRECTION_IMAGES)


def _reused(path: Path, provenance: Provenance, tensors: Sequence[str], images: CalibrationSet, request: LoweringRequest) -> Measured:
    table = table_from_file(path)
    provenance.check(table, str(path))
    missing = [name for name in tensors if name not in table.tensors]
    if missing:
        raise BadInput(f"{path} has no range for {', '.join(missing[:3])}; leave --calibration out to measure again")
    if images.source is None:
        return Measured(table, None)
    sample = _sample(images, request)
    for _ in sample.batches(BATCH):
        pass
    if sample.fingerprint != table.fingerprint:
        raise CalibrationError(
            f"{path} was measured on other images than {images.source.name}: fingerprint {table.fingerprint[:16]}..., "
            f"expected {sample.fingerprint[:16]}...; leave --calibration out to measure again"
        )
    return Measured(table, np.stack(sample.kept))
