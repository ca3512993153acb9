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

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from exporter.deployment.float_pixels import float_manifest, write_float_bundle
from runtimes.bundle import Bundle
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BadInput, BundleError, PlanError
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import EngineFacts, facts_of
from runtimes.parity.compare import LOGITS, is_classifier
from runtimes.preprocess import BGR, LEVELS, PIXELS, takes_any_size

CONFIG, LABELS, MODEL, ENGINE = "config_infer.txt", "labels.txt", "model.onnx", "model.engine"
NVINFER, SERVER = "nvinfer", "nvinferserver"
FLOAT_BUNDLE = "bundle"
"""Folder of the bundle that takes float pixels, beside the configuration."""
MODES = {"fp32": 0, "int8": 1, "fp16": 2}
"""Precision -> nvinfer's network-mode, which counts only where nvinfer builds an engine of its own."""
RGB_FORMAT, BGR_FORMAT, GRAY_FORMAT = 0, 1, 2
REPOSITORY = "triton_model_repo"


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
        return DeepStreamFiles(SERVER, {CONFIG: _server_config(manifest, named=named), **texts})
    return DeepStreamFiles(NVINFER, {CONFIG: _config(manifest, engine, named=named), **texts})


def write_deepstream(
    bundle: Bundle, output: Path, engine: Path | None = None, plugin: str = NVINFER
) -> DeepStreamFiles:
    """Write a new folder for DeepStream: configuration, labels, the model, and the engine if one is given.

    Of a bundle that takes uint8, the model for nvinfer is a bundle of its own in it, so that its engine can be built
    and proven as any other.

    Args:
        engine: an engine of this bundle, as `resnet-deploy build` wrote it.

    Raises:
        PlanError: as `deepstream_files`; or there is something at `output` already.
        BadInput: the engine is of another bundle, or of another library than TensorRT.
        BundleError: the bundle or the engine cannot be read, or the folder cannot be written.
        BackendUnavailable, ExportError: as `exporter.deployment.float_pixels.write_float_bundle`.
    """
    takes_uint8 = bundle.manifest.inputs[0].dtype == PIXELS
    if takes_uint8 and engine is not None:
        raise PlanError(
            "--engine is of a model that takes uint8, which nvinfer cannot feed; leave it out, and build the bundle "
            f"that is written to DIR/{FLOAT_BUNDLE}"
        )
    facts = None if engine is None else _checked_engine(bundle, engine)
    files = deepstream_files(bundle, facts, plugin)
    if output.exists() or output.is_symlink():
        raise PlanError(f"{output} exists; remove it, or give another --output")
    staged = output.with_name(f".{output.name}.partial-{secrets.token_hex(8)}")
    try:
        staged.mkdir(parents=True)
        for name, text in files.texts.items():
            write_in_one_step(staged / name, text.encode())
        if files.plugin == NVINFER and takes_uint8:
            write_float_bundle(bundle, staged / FLOAT_BUNDLE)
        elif files.plugin == NVINFER:
            shutil.copyfile(bundle.file(MODEL), staged / MODEL)
        if engine is not None:
            shutil.copyfile(engine, staged / ENGINE)
        staged.rename(output)
    except OSError as error:
        raise BundleError(f"cannot write {output}: {error.strerror}; choose another --output") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return files


def labels_text(labels: tuple[str, ...]) -> str:
    """Labels as DeepStream reads a classifier's: on one line, a semicolon between two. One inside a label becomes a
    comma, as does what would end the line."""
    return ";".join(",".join(label.replace(";", ",").splitlines()) for label in labels) + "\n"


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


def _checked_engine(bundle: Bundle, engine: Path) -> EngineFacts:
    facts = facts_of(engine)
    if facts.onnx_sha256 != bundle.manifest.files[MODEL].sha256:
        raise BadInput(
            f"{engine} was built from another model than that of {bundle.folder}; build one from this bundle"
        )
    if facts.backend != "tensorrt":
        raise BadInput(f"expected an engine of TensorRT, got one of {facts.backend}, which DeepStream does not load")
    return facts


def _config(manifest: Manifest, engine: EngineFacts | None, *, named: bool) -> str:
    """nvinfer's file."""
    takes_uint8 = manifest.inputs[0].dtype == PIXELS
    manifest = float_manifest(manifest) if takes_uint8 else manifest
    steps, batch = manifest.preprocess, manifest.batch
    means = [LEVELS * mean for mean in steps.mean]
    order = GRAY_FORMAT if steps.channels == 1 else BGR_FORMAT if steps.channels_order == BGR else RGB_FORMAT
    dla = None if engine is None else engine.options.get("dla_core")
    lines = [
        f"# {manifest.name}, for Gst-nvinfer; written by resnet-deploy deepstream.",
        *_engine_comment(manifest, engine, f"DIR/{FLOAT_BUNDLE}" if takes_uint8 else "BUNDLE"),
        *_picture_comment(manifest),
        "[property]",
        "gpu-id=0",
        "gie-unique-id=1",
        "# 1: whole frames; 2: objects that an earlier gie found (then set operate-on-gie-id)",
        "process-mode=1",
        "# 1: classifier",
        "network-type=1",
        f"onnx-file={FLOAT_BUNDLE}/{MODEL}" if takes_uint8 else f"onnx-file={MODEL}",
        f"model-engine-file={ENGINE}",
        *([f"labelfile-path={LABELS}"] if named else []),
        f"batch-size={batch.max}",
        "# 0: FP32, 1: INT8, 2: FP16; an engine that is there already has its own",
        f"network-mode={MODES[manifest.precision]}",
        f"infer-dims={';'.join(map(str, steps.shape))}",
        "# 0: channels first",
        "network-input-order=0",
        "# 0: RGB, 1: BGR, 2: grey",
        f"model-color-format={order}",
        "# the network takes net-scale-factor * (pixel - offset)",
        f"net-scale-factor={1 / (LEVELS * steps.std[0]):.9g}",
        f"offsets={';'.join(f'{mean:.9g}' for mean in (means[::-1] if order == BGR_FORMAT else means))}",
        "maintain-aspect-ratio=0",
        "# 0: nearest, 1: bilinear",
        f"scaling-filter={0 if steps.interpolation == 'nearest' else 1}",
        f"output-blob-names={manifest.outputs[0].name}",
        *_score_comment(manifest),
        "classifier-threshold=0",
        "output-tensor-meta=1",
        *([] if dla is None else ["enable-dla=1", f"use-dla-core={dla}"]),
    ]
    return "\n".join(lines) + "\n"


def _server_config(manifest: Manifest, *, named: bool) -> str:
    """nvinferserver's file: protobuf's text format."""
    network = "IMAGE_FORMAT_RGB" if manifest.preprocess.channels == 3 else "IMAGE_FORMAT_GRAY"
    label_line = [f'    labelfile_path: "{LABELS}"'] if named else []
    lines = [
        f"# {manifest.name}, for Gst-nvinferserver; written by resnet-deploy deepstream. The repository beside this",
        f"# file is that of: resnet-deploy triton BUNDLE --output {REPOSITORY}",
        *_picture_comment(manifest),
        "infer_config {",
        "  unique_id: 1",
        "  gpu_ids: [0]",
        f"  max_batch_size: {manifest.batch.max}",
        "  backend {",
        "    triton {",
        f'      model_name: "{manifest.name}"',
        "      version: -1",
        "      model_repo {",
        f'        root: "{REPOSITORY}"',
        "        strict_model_config: true",
        "      }",
        "    }",
        "  }",
        "  preprocess {",
        f"    network_format: {network}",
        "    tensor_order: TENSOR_ORDER_NHWC",
        "    maintain_aspect_ratio: 0",
        "    normalize { scale_factor: 1.0 }",
        "  }",
        "  postprocess {",
        *label_line,
        *(f"    {line}" for line in _score_comment(manifest)),
        "    classification { threshold: 0.0 }",
        "  }",
        "}",
        "input_control {",
        "  process_mode: PROCESS_MODE_FULL_FRAME",
        "  interval: 0",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _engine_comment(manifest: Manifest, engine: EngineFacts | None, place: str) -> list[str]:
    if engine is not None:
        proof = "proven where it was built" if engine.checked else "not checked yet"
        return [f"# {ENGINE}: {engine.backend} {engine.version}, {', '.join(engine.targets)}, {proof}."]
    lines = [
        f"# {ENGINE} is still to come: build it where it will run, with resnet-deploy build {place}, and copy it from",
        "# that bundle's engines/ to this name.",
    ]
    if manifest.precision == "int8":
        return [*lines, "# nvinfer cannot build it: it wants a table for INT8, and the scales are in the graph."]
    return [*lines, "# Without it nvinfer builds an engine from onnx-file itself, which nothing has proven."]


def _picture_comment(manifest: Manifest) -> list[str]:
    """How DeepStream's pictures differ from those that the bundle was proven on."""
    steps = manifest.preprocess
    height, width = steps.crop
    told = f"# DeepStream scales the frame, or the object, to {width}x{height} as it is."
    if steps.resize in (None, steps.crop):
        return [
            f"{told} The bundle was proven on",
            f"# pictures resized to that size ({steps.interpolation}, with Pillow).",
        ]
    wide = (
        "x".join(map(str, steps.resize[::-1])) if isinstance(steps.resize, tuple) else f"{steps.resize} (shorter side)"
    )
    return [
        f"{told} The bundle was proven on",
        f"# pictures resized to {wide} ({steps.interpolation}, with Pillow) and cut from the centre: a frame",
        "# shows more at its borders here, and squeezed if it is no square; expect other accuracy, and measure it.",
    ]


def _score_comment(manifest: Manifest) -> list[str]:
    if manifest.outputs[0].name != LOGITS:
        return []
    return [
        "# The network gives logits: the largest that is above the threshold is the class, and its logit is what",
        "# DeepStream calls confidence. For probabilities take the softmax of the output tensor's metadata.",
    ]
