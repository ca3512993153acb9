"""ONNX Runtime's TensorRT provider: its settings for a model, and where it keeps the engines that it builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnxruntime as ort

from runtimes.bundle import sha256_of_file
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BackendUnavailable
from runtimes.locks import folder_lock
from runtimes.private import cache_base, private_cache
from runtimes.specs import BatchRange

NAME = "TensorrtExecutionProvider"
FOLDERS = ("resnet-export", "tensorrt")
SUMS = "SHA256SUMS"
LACKS_LIBRARIES = "Please install TensorRT libraries"
"""In what ONNX Runtime says where its provider finds no TensorRT."""
INSTALL_LIBRARIES = (
    "expected TensorRT's libraries for onnxruntime's provider 'tensorrt', got none that load; install the version that "
    'this onnxruntime was built for (onnxruntime.ai, "TensorRT Execution Provider"), or use --provider cuda'
)
TYPES = {"fp16": ("trt_fp16_enable",), "bf16": ("trt_bf16_enable",), "int8": ("trt_fp16_enable", "trt_int8_enable")}
"""The settings that allow a precision's types: before TensorRT 11 the provider builds weakly typed networks."""


def tensorrt_settings(model: Path, batch: BatchRange | None) -> dict[str, str]:
    """Settings of `TensorrtExecutionProvider` (onnxruntime.ai, "TensorRT Execution Provider").

    Engines go into a folder of their own for each content of a model file: the provider's own key does not see a change
    of weights. The precision is the one that resnet-export wrote into the file's metadata.

    Raises:
        BackendUnavailable: the folder cannot be made, or others may write to it.
    """
    folder = _folder(model)
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


@contextmanager
def checked_cache(model: Path | bytes | None) -> Iterator[None]:
    """Open a session inside: what is damaged in the model's cache is removed first, so that it is built again, and what
    is there afterwards counts as whole. The provider itself fails on a damaged engine, each time.

    Of several processes at once, one builds, and the others wait and take what it has built. Where there is no file,
    nothing is kept.
    """
    if not isinstance(model, Path):
        yield
        return
    folder = _folder(model)
    with folder_lock(folder):
        whole = _sums(folder / SUMS)
        for path in _cached(folder):
            if whole.get(path.name) != sha256_of_file(path):
                path.unlink()
        yield
        with suppress(OSError):
            _note_whole(folder)


def note_built(model: Path | None) -> None:
    """Note, after runs, what a session has built since it was opened. Without a checksum it is built again."""
    if model is not None:
        with suppress(OSError, BackendUnavailable):
            _note_whole(_folder(model))


def _note_whole(folder: Path) -> None:
    """Note the checksums of all that is in a model's cache."""
    lines = (f"{sha256_of_file(path)}  {path.name}\n" for path in _cached(folder))
    write_in_one_step(folder / SUMS, "".join(lines).encode())


def _folder(model: Path) -> Path:
    return private_cache(*FOLDERS, sha256_of_file(model)[:16])


def _cached(folder: Path) -> list[Path]:
    """The provider's engines, profiles and timings."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)


def _sums(path: Path) -> dict[str, str]:
    """Checksums by the names of files; empty where there are none to be read."""
    with suppress(OSError, ValueError):
        pairs = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
        return {name: digest for digest, name in pairs}
    return {}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/resnet-export/tensorrt`, by default under `~/.cache`. Raises as `home_folder` does."""
    return cache_base().joinpath(*FOLDERS)
