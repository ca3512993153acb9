"""Loading an engine: everything that can be said against it is said before TensorRT reads it, whose own answer is None and a line in a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.backends._log import log_of
from runtimes.engine import EngineFacts, Here, check_loadable, read_engine
from runtimes.errors import BackendUnavailable

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Loaded:
    """A deserialised engine, the runtime that must outlive it, and its sidecar."""

    runtime: trt.Runtime
    engine: trt.ICudaEngine
    facts: EngineFacts
    path: Path


def loaded(api: Any, path: Path, here: Callable[[], Here]) -> Loaded:
    """The engine at `path`, if it is the one its sidecar names and was built for this library, version, platform and GPU; `here` asks the driver.

    Raises:
        BackendUnavailable: no driver; an engine for something else; or TensorRT refuses it, with its reason.
        BundleError, BadInput: changed since it was built, without a sidecar, or no engine.
    """
    facts, data = read_engine(path)
    check_loadable(facts, here(), str(path))
    log = log_of(api)
    with log.recording() as recording:
        runtime: trt.Runtime = api.Runtime(log.logger)
        if facts.version_compatible:
            runtime.engine_host_code_allowed = True  # it holds a lean runtime; its content is what the sidecar names
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendUnavailable(f"TensorRT does not load {path}: {recording.reason}; build it again with: resnet-deploy build BUNDLE")
        if facts.stripped:
            _refit(api, engine, path.parent.parent / "model.onnx")
    return Loaded(runtime, engine, facts, path)


def _refit(api: Any, engine: trt.ICudaEngine, onnx: Path) -> None:
    """Put the ONNX file's weights into an engine that was stripped of them."""
    log = log_of(api)
    with log.recording() as recording:
        refitter: trt.Refitter = api.Refitter(engine, log.logger)
        parser: trt.OnnxParserRefitter = api.OnnxParserRefitter(refitter, log.logger)
        if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
            raise BackendUnavailable(f"TensorRT does not take {onnx}'s weights: {recording.reason}; build the engine again without --strip-weights")
