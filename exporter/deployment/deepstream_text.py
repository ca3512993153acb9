"""The text of DeepStream's files: nvinfer's configuration, nvinferserver's, and the labels."""

from __future__ import annotations

import json

from exporter.deployment.float_pixels import float_manifest
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import EngineFacts
from runtimes.parity.compare import LOGITS
from runtimes.preprocess import BGR, LEVELS, PIXELS
from runtimes.printable import printable

LABELS, MODEL, ENGINE = "labels.txt", "model.onnx", "model.engine"
FLOAT_BUNDLE = "bundle"
"""Folder of the bundle that takes float pixels, beside the configuration."""
MODES = {"fp32": 0, "int8": 1, "fp16": 2}
"""Precision -> nvinfer's network-mode, which counts only where nvinfer builds an engine of its own."""
RGB_FORMAT, BGR_FORMAT, GRAY_FORMAT = 0, 1, 2
REPOSITORY = "triton_model_repo"


def labels_text(labels: tuple[str, ...]) -> str:
    """Labels as DeepStream reads a classifier's: on one line, a semicolon between two. One inside a label becomes a
    comma, as does what would end the line."""
    return ";".join(",".join(label.replace(";", ",").splitlines()) for label in labels) + "\n"


def nvinfer_text(manifest: Manifest, engine: EngineFacts | None, *, named: bool) -> str:
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


def nvinferserver_text(manifest: Manifest, *, named: bool) -> str:
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
        f"      model_name: {json.dumps(manifest.name, ensure_ascii=False)}",
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
        said = f"{engine.backend} {engine.version}, {', '.join(engine.targets)}, {proof}"
        return [f"# {ENGINE}: {printable(said)}."]
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
