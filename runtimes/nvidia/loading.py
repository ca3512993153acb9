"""Load an engine, after all checks that need no TensorRT: of a wrong engine it only logs a line and returns None."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.errors import BackendUnavailable, BundleError
from runtimes.nvidia.engine_choice import Here, loadable_engine
from runtimes.nvidia.engine_file import EngineFacts
from runtimes.nvidia.log import log_of
from runtimes.private import read_regular

if TYPE_CHECKING:
    import tensorrt as trt


ONNX = "model.onnx"
MOST_ONNX_BYTES = 1 << 31
"""No protobuf is larger."""


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialised engine, the runtime that must outlive it, and its sidecar."""

    runtime: trt.Runtime
    engine: trt.ICudaEngine
    facts: EngineFacts
    path: Path


def load_engine(api: Any, path: Path, here: Callable[[], Here], trusted: Collection[str] = ()) -> LoadedEngine:
    """Load the engine at `path`, if it is for this library, version, platform and GPU, and this machine built it or
    `trusted` has its sha256.

    Raises:
        BackendUnavailable: no driver; an engine for something else; or TensorRT refuses it, with its reason.
        BundleError, BadInput: changed since it was built, built elsewhere, without a sidecar, without the weights it
            was built from, or no engine.
    """
    facts, data = loadable_engine(path, here, trusted)
    weights = _weights(facts, path.absolute().parent.parent / ONNX) if facts.stripped else None
    log = log_of(api)
    with log.recording() as recording:
        runtime: trt.Runtime = api.Runtime(log.logger)
        if facts.version_compatible:
            runtime.engine_host_code_allowed = True  # it holds a lean runtime; we built it, or were told to trust it
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendUnavailable(
                f"TensorRT does not load {path}: {recording.reason}; build it again with: resnet-deploy build BUNDLE"
            )
        if weights is not None:
            _refit(api, engine, weights, path)
    return LoadedEngine(runtime, engine, facts, path)


def _weights(facts: EngineFacts, onnx: Path) -> bytes:
    """Read the ONNX file that an engine without weights was built from.

    Raises:
        BundleError: it cannot be read, or is another file.
    """
    again = "build the engine again, without --strip-weights if it is to run without that file"
    try:
        model = read_regular(onnx, MOST_ONNX_BYTES)
    except OSError as error:
        raise BundleError(
            f"cannot read {onnx} ({error.strerror}), which holds the engine's weights; {again}"
        ) from error
    if hashlib.sha256(model).hexdigest() != facts.onnx_sha256:
        raise BundleError(f"{onnx} is not the file that the engine was built from, whose weights it takes; {again}")
    return model


def _refit(api: Any, engine: trt.ICudaEngine, model: bytes, path: Path) -> None:
    """Put an ONNX file's weights into an engine that was built without them."""
    log = log_of(api)
    with log.recording() as recording:
        refitter: trt.Refitter = api.Refitter(engine, log.logger)
        parser: trt.OnnxParserRefitter = api.OnnxParserRefitter(refitter, log.logger)
        if not parser.refit_from_bytes(model) or not refitter.refit_cuda_engine():
            raise BackendUnavailable(
                f"TensorRT does not put its weights into {path}: {recording.reason}; build it again without "
                "--strip-weights"
            )
