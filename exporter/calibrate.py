"""The ranges that a precision needs: measured on the images of a plan, or read from a table that was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.collect import BATCH, collect
from calibration.data import ImageSource, Split, built_in, channelled, check_channels, evenly_chosen, open_source
from calibration.sample import Sample
from calibration.table import CalibrationTable, Provenance, table_from_file, table_from_histograms
from exporter.plan import CALIBRATOR, ExportPlan
from exporter.weights import LoadedModel
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput, CalibrationError, PlanError
from runtimes.parity import is_classifier
from runtimes.preprocess import MODES

CALIBRATION_IMAGES = 512
CORRECTION_IMAGES = 64
PACKAGES = ("resnet-export", "numpy", "pillow")


@dataclass(frozen=True)
class Measured:
    """The ranges of a plan.

    Attributes:
        table: measured, or given.
        pictures: some of those it was measured on, spread over all, uint8 (pictures, height, width, channels), of the model's size; None where a
            table is given without --data.
    """

    table: CalibrationTable
    pictures: NDArray[np.uint8] | None


def calibrated(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    loaded: LoadedModel,
    plan: ExportPlan,
    on_image: Callable[[int, int], None],
    on_unreadable: Callable[[str], None],
) -> Measured:
    """The table for `tensors` of the simplified FP32 graph, and some of the pictures it is of. Each picture is read once.

    Args:
        on_image: called with the number of pictures done and of all.
        on_unreadable: called with what is wrong with each picture that was left out.

    Raises:
        PlanError: a model that was trained on other images than the built-in ones, and no --data.
        CalibrationError: the images, or a given table, do not do.
        BadInput: --data or --calibration cannot be read, or the pictures have other channels than the model.
    """
    import onnxruntime

    versions = {**{name: version(name) for name in PACKAGES}, "onnxruntime": onnxruntime.__version__}
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    provenance = Provenance(digest, loaded.preprocess, versions)
    if plan.calibration is not None:
        return _reused(provenance, tensors, loaded, plan)
    sample = _sample(loaded, plan)
    total, done = sample.source.count, 0

    def count() -> None:
        nonlocal done
        done += 1
        on_image(done, total)

    histograms = collect(model, tensors, _fed(sample.batches(BATCH, count), loaded, plan))
    for problem in sample.unreadable:
        on_unreadable(problem)
    sample.check(allow_few=plan.allow_few_images)
    table = table_from_histograms(histograms, provenance, images=sample.images, fingerprint=sample.fingerprint)
    return Measured(table, np.stack(sample.kept))


def data_source(loaded: LoadedModel, plan: ExportPlan) -> ImageSource:
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
    return built_in_for(loaded, plan, "train")


def built_in_for(loaded: LoadedModel, plan: ExportPlan, split: Split) -> ImageSource:
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


def calibration_places(source: ImageSource, plan: ExportPlan) -> NDArray[np.int64]:
    """Which of a source's pictures are calibrated on.

    Raises:
        PlanError: --calibration-images asks for more than there are.
    """
    if plan.calibration_images is not None and plan.calibration_images > source.count:
        raise PlanError(f"--calibration-images asks for {plan.calibration_images}, but {source.name} has {source.count}; ask for fewer")
    return evenly_chosen(source, plan.calibration_images or CALIBRATION_IMAGES, plan.seed)


def _sample(loaded: LoadedModel, plan: ExportPlan) -> Sample:
    source = data_source(loaded, plan)
    check_channels(source, loaded.preprocess)
    return Sample(source.chosen(calibration_places(source, plan)), loaded.preprocess, keep=CORRECTION_IMAGES)


def _fed(batches: Iterable[NDArray[np.float32]], loaded: LoadedModel, plan: ExportPlan) -> Iterator[NDArray[Any]]:
    """Batches as the plan's graph takes them."""
    for batch in batches:
        yield loaded.preprocess.pixels_from_inputs(batch) if plan.uint8_input else batch


def _reused(provenance: Provenance, tensors: Sequence[str], loaded: LoadedModel, plan: ExportPlan) -> Measured:
    assert plan.calibration is not None
    table = table_from_file(plan.calibration)
    provenance.check(table, str(plan.calibration))
    missing = [name for name in tensors if name not in table.tensors]
    if missing:
        raise BadInput(f"{plan.calibration} has no range for {', '.join(missing[:3])}; leave --calibration out to measure again")
    if plan.data is None:
        return Measured(table, None)
    sample = _sample(loaded, plan)
    for _ in sample.batches(BATCH):
        pass
    if sample.fingerprint != table.fingerprint:
        raise CalibrationError(
            f"{plan.calibration} was measured on other images than {plan.data}: fingerprint {table.fingerprint[:16]}..., "
            f"expected {sample.fingerprint[:16]}...; leave --calibration out to measure again"
        )
    return Measured(table, np.stack(sample.kept))


def corrected(
    precision: Any, model: onnx.ModelProto, measured: Measured, loaded: LoadedModel, plan: ExportPlan
) -> tuple[onnx.ModelProto, CalibrationTable]:
    """The graph lowered with the table's thresholds and its mean error taken off the classifier's bias, and the table with that correction.

    Quantizing shifts activations a little, always to the same side, and the shifts add up over the blocks: of a random ResNet-101's error
    two thirds were the same for every image (41.6 dB of SQNR with them, 46.6 dB without). A bias can hold that part (Finkelstein, Almog
    and Grobman 2019, arXiv 1906.03193; Nagel et al. 2019, arXiv 1906.04721, section 4.2). A table that has the correction is applied as
    it stands; without pictures to measure it on, there is none.
    Features have no classifier, and what stands before a ReLU cannot be corrected behind it: their graph is lowered as it is.
    """
    table, pictures, calibrator = measured.table, measured.pictures, plan.calibrator or CALIBRATOR
    thresholds = table.thresholds(calibrator)
    lowered: onnx.ModelProto = precision.lower(model, thresholds)
    if not is_classifier(value.name for value in model.graph.output):
        return lowered, table
    if calibrator not in table.corrections:
        if pictures is None:
            return lowered, table
        batches = (loaded.preprocess.normalised(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH))
        error = mean_error(model, precision.simulated(lowered), _fed(batches, loaded, plan))
        table = replace(table, corrections={**table.corrections, calibrator: [float(f"{value:.6g}") for value in error]})
    biased = with_bias_less(model, np.array(table.corrections[calibrator], np.float32))
    return (lowered, table) if biased is None else (precision.lower(biased, thresholds), table)


def mean_error(exact: onnx.ModelProto, lowered: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The mean over images of what `lowered` answers more than `exact`: float64 (classes,)."""
    differences = []
    with OnnxRuntime.from_bytes(exact.SerializeToString()) as one, OnnxRuntime.from_bytes(lowered.SerializeToString()) as other:
        source, result = one.inputs[0].name, one.outputs[0].name
        for batch in batches:
            differences.append(other.run({source: batch})[result].astype(np.float64) - one.run({source: batch})[result])
    mean: NDArray[np.float64] = np.concatenate(differences).mean(0)
    return mean


def with_bias_less(model: onnx.ModelProto, correction: NDArray[np.float32]) -> onnx.ModelProto | None:
    """A copy whose classifier's bias is less by `correction`; None where the output is not a classifier's with a bias."""
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    if last.op_type != "Gemm" or len(last.input) < 3:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name == last.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - correction, tensor.name))
    return result
