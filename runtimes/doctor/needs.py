"""What building an engine of a bundle takes: memory, disk, a folder to write to, and a place for this machine's key."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from runtimes.board.memory import GIB
from runtimes.bundle import ONNX, Bundle
from runtimes.doctor.facts import BundleFacts
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.nvidia.plan_files import FOLDER
from runtimes.nvidia.trust import key_file

LIBRARY_BYTES = GIB
"""What Python, TensorRT and a CUDA context take before any graph: an assumption."""
COPIES_IN_MEMORY = 4
"""Of the weights: the file, the parser's, the builder's and the engine. Without a CUDA context, TensorRT-RTX 1.7 took
0.43 GiB for a ResNet-50 in FP16, whose file has 49 MiB (measured)."""
COPIES_ON_DISK = 2
"""The new engine stands beside the old one until it is proven."""
WIDEST = 64
"""Channels of a ResNet's first layer, whose output, at half of the picture's sides, is its largest."""
BYTES = {"fp32": 4}
LARGEST_SIDE = 224
"""For pictures of any size."""


def bundle_facts(bundle: Bundle, build_refusals: Mapping[str, str]) -> BundleFacts:
    """What is to be known of a bundle before an engine is built from it.

    Args:
        build_refusals: by builder, why it cannot build the bundle.
    """
    manifest, folder = bundle.manifest, _nearest(bundle.folder / FOLDER)
    weights = manifest.files[ONNX].bytes if ONNX in manifest.files else 0
    return BundleFacts(
        path=str(bundle.folder),
        name=manifest.model.name,
        precision=manifest.precision,
        target=manifest.target,
        batch=str(manifest.batch),
        rejection=bundle.rejection,
        disk_bytes=COPIES_ON_DISK * weights,
        memory_bytes=LIBRARY_BYTES + COPIES_IN_MEMORY * weights + activation_bytes(bundle),
        free_disk_bytes=_free_bytes(folder),
        writable=os.access(folder, os.W_OK | os.X_OK),
        build_refusals=dict(build_refusals),
        key_problem=_key_problem(),
    )


def activation_bytes(bundle: Bundle) -> int:
    """Three tensors of the largest kind for the largest batch, as a residual block holds at once."""
    manifest = bundle.manifest
    sides = [size if isinstance(size, int) and size > 0 else LARGEST_SIDE for size in manifest.inputs[0].shape[-2:]]
    return (
        3
        * manifest.batch.max
        * WIDEST
        * math.prod(math.ceil(side / 2) for side in sides)
        * BYTES.get(manifest.precision, 2)
    )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one around it that is there."""
    return next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _key_problem() -> str:
    try:
        path = key_file()
    except (BackendUnavailable, BadInput) as error:
        return str(error)
    folder = _nearest(path if path.exists() else path.parent)
    return "" if os.access(folder, os.R_OK if folder == path else os.W_OK) else f"{folder} cannot be written"
