"""Bundles with a fault of known place, whose manifests vouch for them all the same."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from manifest_edits import rewrite_manifest
from onnx import numpy_helper

from runtimes import Bundle
from runtimes.bundle import MANIFEST
from runtimes.bundle_writing import write_manifest

BLOCKS = ("stem", *(f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3)), "head")
"""Of the shipped ResNet-20."""


def spoilt(bundle: Bundle, folder: Path, factors: Mapping[str, float]) -> Bundle:
    """A copy in which constants of `model.onnx` are multiplied."""
    model = onnx.load(bundle.file("model.onnx"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, factor in factors.items():
        values = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(
            numpy_helper.from_array((values.astype(np.float32) * np.float32(factor)).astype(values.dtype), name)
        )
    return with_file(bundle, folder, "model.onnx", model.SerializeToString())


def with_file(bundle: Bundle, folder: Path, name: str, data: bytes | None) -> Bundle:
    """A copy with another file of that name; without it where there is no data."""
    shutil.copytree(bundle.folder, folder)
    (folder / MANIFEST).unlink()
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    write_manifest(folder, bundle.manifest)
    return Bundle.open(folder)


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Put another file into the bundle itself, with its sha256 in the manifest."""
    (bundle / name).write_bytes(data)
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    rewrite_manifest(bundle, lambda document: document["files"].update({name: facts}))


def answer_nan(bundle: Path) -> None:
    """Make every logit of the bundle's own model NaN: the classifier's bias is."""
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    replace_file(bundle, "model.onnx", model.SerializeToString())
