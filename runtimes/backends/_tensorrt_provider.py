"""ONNX Runtime's TensorRT provider: its settings for a model, and where it keeps the engines that it builds."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from runtimes.bundle import sha256_of_file
from runtimes.private import cache_base, private_cache
from runtimes.specs import BatchRange

NAME = "TensorrtExecutionProvider"
FOLDERS = ("resnet-export", "tensorrt")
TYPES = {"fp16": ("trt_fp16_enable",), "bf16": ("trt_bf16_enable",), "int8": ("trt_fp16_enable", "trt_int8_enable")}
"""The settings that allow a precision's types: before TensorRT 11 the provider builds weakly typed networks."""


def tensorrt_settings(model: Path, batch: BatchRange | None) -> dict[str, str]:
    """Settings of `TensorrtExecutionProvider` (onnxruntime.ai, "TensorRT Execution Provider").

    Engines go into a folder of their own for each content of a model file: the provider's own key does not see a change
    of weights. The precision is the one that resnet-export wrote into the file's metadata.

    Raises:
        BackendUnavailable: the folder cannot be made, or others may write to it.
    """
    folder = private_cache(*FOLDERS, sha256_of_file(model)[:16])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    described = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    settings = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    precision = described.get_modelmeta().custom_metadata_map.get("precision", "")
    settings |= dict.fromkeys(TYPES.get(precision, ()), "1")
    if batch is not None:
        for kind, rows in (("min", batch.min), ("opt", batch.opt), ("max", batch.max)):
            shapes = (
                f"{value.name}:{'x'.join(map(str, (rows, *value.shape[1:])))}" for value in described.get_inputs()
            )
            settings[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    return settings


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/resnet-export/tensorrt`, by default under `~/.cache`. Raises as `home_folder` does."""
    return cache_base().joinpath(*FOLDERS)
