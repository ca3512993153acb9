"""OpenVINO's compiled models, kept so that opening one again takes a fraction of the time."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.backends._openvino_package import FrontEndManager, ov
from runtimes.bundle import sha256_of_file
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BackendUnavailable
from runtimes.printable import is_utf8
from runtimes.private import CACHE_REMEDY, private_cache
from runtimes.processor import processor

FOLDERS = ("resnet-export", "openvino")
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        memory: what the model reads its weights from, so it must live as long; None where it has memory of its own.
        not_kept: why it is not, in words; empty where it is.
    """

    model: ov.CompiledModel
    memory: NDArray[np.uint8] | None
    not_kept: str = ""


def model_from_onnx(path: Path) -> ov.Model:
    """Read an ONNX file. `Core.read_model` would offer it to the readers of all other formats, too.

    Raises:
        ValueError: it holds no graph.
        RuntimeError: OpenVINO cannot read it.
    """
    reader = FrontEndManager().load_by_framework("onnx")
    model = reader.convert(reader.load(str(path) if is_utf8(path) else io.BytesIO(path.read_bytes())))
    if not model.inputs or not model.outputs:
        raise ValueError("expected a graph with inputs and outputs, got none")
    return model


def compile_cached(
    core: ov.Core, path: Path, device: str, settings: Mapping[str, Any], graph: Mapping[str, Any]
) -> Compiled:
    """Compile a model file, or load what an earlier call has kept of the same content.

    A file holds what OpenVINO exports and its sha256, without which OpenVINO would take changed weights as they are;
    one that is not whole, or that OpenVINO refuses, is made again. Without a folder that this user alone may write to,
    nothing is kept, and nothing loaded.

    Args:
        settings: all properties to compile with.
        graph: those of them that change the graph that is kept.

    Raises:
        ValueError: as `model_from_onnx`.
        RuntimeError: OpenVINO cannot compile the model.
    """
    try:
        folder = private_cache(*FOLDERS, sha256_of_file(path))
    except BackendUnavailable as error:
        return Compiled(core.compile_model(model_from_onnx(path), device, dict(settings)), None, str(error))
    kept = folder / _name(core, device, graph)
    loaded = _load(core, kept, device, settings)
    if loaded is not None:
        return loaded
    model = core.compile_model(model_from_onnx(path), device, dict(settings))
    try:
        blob = model.export_model().getbuffer()
        write_in_one_step(kept, b"".join((blob, hashlib.sha256(blob).digest())))
    except OSError as error:
        return Compiled(model, None, f"cannot write {kept}: {error.strerror}; {CACHE_REMEDY}")
    except RuntimeError:
        return Compiled(model, None, f"{device} cannot export models")
    return Compiled(model, None)


def _name(core: ov.Core, device: str, graph: Mapping[str, Any]) -> str:
    """A file name for everything but the model that a compiled model depends on."""
    facts = (
        ov.get_version(),
        core.get_property(device, "FULL_DEVICE_NAME"),
        core.get_property(device, "OPTIMIZATION_CAPABILITIES"),
        str(processor()),
        sorted(graph.items()),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] + ".blob"


def _load(core: ov.Core, kept: Path, device: str, settings: Mapping[str, Any]) -> Compiled | None:
    """The model in a file; None where there is none, or another content than was written."""
    try:
        mapped = np.memmap(kept, np.uint8, mode="c")  # private: OpenVINO takes memory that may be written to alone
        blob, digest = mapped[:-DIGEST_BYTES], mapped[-DIGEST_BYTES:].tobytes()
        if hashlib.sha256(blob.data).digest() != digest:
            return None
        return Compiled(core.import_model(ov.Tensor(blob, shared_memory=True), device, dict(settings)), blob)
    except (OSError, ValueError, RuntimeError):  # missing, empty, or not this OpenVINO's
        return None
