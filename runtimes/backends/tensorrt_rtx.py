"""TensorRT-RTX: runs a bundle's engine on a GeForce or RTX GPU. Compiled kernels are kept beside the engine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast, final

import tensorrt_rtx

from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.loading import LoadedEngine
from runtimes.nvidia.shapes import engine_specs
from runtimes.nvidia.trust import ensure_machine_key, machine_key, with_seal, without_seal
from runtimes.preprocess import takes_any_size
from runtimes.private import read_regular

MOST_CACHE_BYTES = 1 << 30


@final
class TensorRTRTX(EngineRuntime):
    """An engine of TensorRT-RTX.

    Its kernels are compiled when a batch size is first run, in the foreground (strategy "eager"), so that no output and
    no measurement comes from a fallback kernel. The library captures the whole engine as a CUDA graph itself. For
    pictures of any size, kernels for any size are used, and no graph: both would be made anew for each size.
    """

    BACKEND = "tensorrt-rtx"
    API: ClassVar[Any] = tensorrt_rtx
    CAPTURES = False

    def __init__(self, model: LoadedEngine) -> None:
        self._config = _engine(model).create_runtime_config()
        if any(takes_any_size(spec) for spec in engine_specs(self.API, model.engine)):
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.NONE
            )
            self._config.cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.DISABLED
        else:
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self._config.cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self._config.create_runtime_cache()
        self._cache_file = cache_of(model.path)
        kernels = kernels_of(model)
        if kernels is not None:
            self._cache.deserialize(kernels)  # one of another version or GPU is refused, and filled anew
        self._config.set_runtime_cache(self._cache)
        super().__init__(model)

    def _context(self) -> tensorrt_rtx.IExecutionContext | None:
        return _engine(self._loaded).create_execution_context(self._config)

    def _close(self) -> None:
        compiled, sha256 = self._cache.serialize(), self._loaded.facts.engine_sha256
        super()._close()
        # A bundle that may not be written to, or no place for a key: the kernels are compiled again next time.
        with suppress(OSError, BackendUnavailable, BadInput):
            write_in_one_step(self._cache_file, with_seal(bytes(memoryview(compiled)), sha256, ensure_machine_key()))


def _engine(model: LoadedEngine) -> tensorrt_rtx.ICudaEngine:
    """The engine, typed as TensorRT-RTX's: `LoadedEngine` types it as TensorRT's."""
    return cast("tensorrt_rtx.ICudaEngine", model.engine)


def kernels_of(model: LoadedEngine) -> bytes | None:
    """The engine's compiled kernels that this machine compiled and kept, or None. Kernels are code: no others are
    used."""
    with suppress(OSError, BackendUnavailable, BadInput):  # none yet, or none that may be read; no key that may be used
        key = machine_key()
        return (
            without_seal(read_regular(cache_of(model.path), MOST_CACHE_BYTES), model.facts.engine_sha256, key)
            if key is not None
            else None
        )
    return None


def cache_of(engine: Path) -> Path:
    """The file with an engine's compiled kernels."""
    return engine.with_suffix(".cache")


RUNTIME = TensorRTRTX
