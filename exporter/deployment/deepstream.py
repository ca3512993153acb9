"""DeepStream's configuration of a bundle, out of its manifest. Needs neither DeepStream nor TensorRT.

DeepStream has two plug-ins that run a network. Gst-nvinfer loads a TensorRT engine and writes its input itself, float32
`net-scale-factor * (pixel - offset)`, with one offset a channel and one factor for all (NvDsInferConvert_*Float in
nvdsinfer_context_impl.cpp). It can neither write uint8 nor divide each channel by its own standard deviation. So a
model that takes normalised float32 is for nvinfer if its standard deviations are all the same; one that takes uint8
pixels, and normalises them itself, is written once more to take them as float32 (`float_pixels`), with a factor of 1.
Others are refused: numbers that are nearly right are not what was proven. Gst-nvinferserver has Triton run the network,
and writes whatever type the network takes; it is for the uint8 model as it is.

Sources: DeepStream's pages on Gst-nvinfer and Gst-nvinferserver; for the classes, ClassifyPostprocessor in
nvdsinfer_context_impl.cpp.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from exporter.deployment.deepstream_text import (
    ENGINE,
    FLOAT_BUNDLE,
    LABELS,
    MODEL,
    MODES,
    labels_text,
    nvinfer_text,
    nvinferserver_text,
)
from exporter.deployment.float_pixels import write_float_bundle
from runtimes.bundle import Bundle
from runtimes.bundle_writing import new_folder_beside
from runtimes.errors import BadInput, PlanError
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import Engine, EngineFacts, engine_content, open_engine
from runtimes.nvidia.trust import check_trusted
from runtimes.parity.compare import is_classifier
from runtimes.preprocess import PIXELS, takes_any_size

CONFIG = "config_infer.txt"
NVINFER, SERVER = "nvinfer", "nvinferserver"


@dataclass(frozen=True)
class DeepStreamFiles:
    """What DeepStream reads.

    Attributes:
        plugin: `nvinfer` or `nvinferserver`.
        texts: file name -> its text; the configuration names the others relative to itself.
    """

    plugin: str
    texts: dict[str, str]


def deepstream_files(bundle: Bundle, engine: EngineFacts | None = None, plugin: str = NVINFER) -> DeepStreamFiles:
    """The configuration and the labels of a bundle. Beside them nvinfer looks for `model.engine`, and for `model.onnx`
    or, where the bundle takes uint8, `bundle/model.onnx`.

    Args:
        engine: of the bundle, to be beside the configuration as `model.engine`; None where it is still to be built.

    Raises:
        PlanError: neither plug-in can feed the model exactly, or it is no classifier; says what to export instead.
        BundleError: its labels cannot be read.
    """
    bundle.check_accepted()
    manifest = bundle.manifest
    _check(manifest)
    texts = {} if bundle.labels is None else {LABELS: labels_text(bundle.labels)}
    named = bool(texts)
    if plugin == SERVER:
        if manifest.inputs[0].dtype != PIXELS:
            raise PlanError(
                f"--plugin {SERVER} is for models that take uint8 pixels, and this one takes float32; leave it out, or "
                "export the model with --uint8-input"
            )
        return DeepStreamFiles(SERVER, {CONFIG: nvinferserver_text(manifest, named=named), **texts})
    return DeepStreamFiles(NVINFER, {CONFIG: nvinfer_text(manifest, engine, named=named), **texts})


def write_deepstream(
    bundle: Bundle,
    output: Path,
    engine: Path | None = None,
    plugin: str = NVINFER,
    trusted: Collection[str] = (),
) -> DeepStreamFiles:
    """Write a new folder for DeepStream: configuration, labels, the model, and the engine if one is given.

    Of a bundle that takes uint8, the model for nvinfer is a bundle of its own in it, so that its engine can be built
    and proven as any other.

    Args:
        engine: an engine of this bundle, as `resnet-deploy build` wrote it.
        trusted: sha256 of engines to copy though this machine did not build them.

    Raises:
        PlanError: as `deepstream_files`; there is something at `output` already, or that lies in the bundle; or the
            engine's weights are in the bundle alone.
        BadInput: the engine is of another bundle, or of another library than TensorRT.
        BundleError: the bundle or the engine cannot be read, the engine is not trusted, or the folder cannot be
            written.
        BackendUnavailable, ExportError: as `exporter.deployment.float_pixels.write_float_bundle`.
    """
    takes_uint8 = bundle.manifest.inputs[0].dtype == PIXELS
    if takes_uint8 and engine is not None:
        raise PlanError(
            "--engine is of a model that takes uint8, which nvinfer cannot feed; leave it out, and build the bundle "
            f"that is written to DIR/{FLOAT_BUNDLE}"
        )
    read = None if engine is None else _read_engine(bundle, engine, trusted)
    files = deepstream_files(bundle, None if read is None else read.facts, plugin)
    if output.exists() or output.is_symlink():
        raise PlanError(f"{output} exists; remove it, or give another --output")
    if output.resolve().is_relative_to(bundle.folder.resolve()):
        raise PlanError(f"{output} lies in the bundle {bundle.folder}; choose another --output")
    with new_folder_beside(output) as staged:
        for name, text in files.texts.items():
            (staged / name).write_text(text, encoding="utf-8")
        if files.plugin == NVINFER and takes_uint8:
            write_float_bundle(bundle, staged / FLOAT_BUNDLE)
        elif files.plugin == NVINFER:
            shutil.copyfile(bundle.file(MODEL), staged / MODEL)
        if read is not None:
            (staged / ENGINE).write_bytes(read.data)
        bundle.check_same()
        staged.rename(output)
    return files


def _check(manifest: Manifest) -> None:
    """Refuse what neither plug-in feeds exactly, or whose answers DeepStream does not read.

    Raises:
        PlanError: says what to export instead.
    """
    spec, steps = manifest.inputs[0], manifest.preprocess
    if not is_classifier(one.name for one in manifest.outputs):
        raise PlanError(
            "expected a classifier for DeepStream, got a model that gives features; export it without --features"
        )
    if steps.channels not in (1, 3):
        raise PlanError(f"expected a model of 1 or 3 channels, got {steps.channels}: DeepStream feeds no others")
    if manifest.kernels is not None:
        raise PlanError(
            f"the bundle is for {manifest.target}, and DeepStream runs TensorRT; export it again with --target tensorrt"
        )
    if takes_any_size(spec):
        raise PlanError(
            "DeepStream scales pictures to one size, and this model takes any; export it with --uint8-input alone"
        )
    if manifest.precision not in MODES:
        raise PlanError(f"nvinfer has no {manifest.precision}; export the model with --fp16 or --int8")
    if spec.dtype != PIXELS and len(set(steps.std)) > 1:
        values = ", ".join(f"{value:g}" for value in steps.std)
        raise PlanError(
            "nvinfer multiplies all channels by one net-scale-factor, and this model's channels have standard "
            f"deviations of their own ({values}); export it with --uint8-input, which normalises in the graph"
        )


def _read_engine(bundle: Bundle, path: Path, trusted: Collection[str]) -> Engine:
    """An engine of the bundle that may be run: DeepStream loads what lies there."""
    with open_engine(path) as (file, document, facts):
        if facts.onnx_sha256 != bundle.manifest.files[MODEL].sha256:
            raise BadInput(
                f"{path} was built from another model than that of {bundle.folder}; build one from this bundle"
            )
        if facts.backend != "tensorrt":
            raise BadInput(
                f"expected an engine of TensorRT, got one of {facts.backend}, which DeepStream does not load"
            )
        if facts.stripped:
            raise PlanError(
                f"{path} has its weights in model.onnx, and nvinfer does not put them in; build it again without "
                "--strip-weights"
            )
        check_trusted(document, str(path), trusted)
        return Engine(facts, engine_content(path, facts, file))
