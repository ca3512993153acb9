"""TensorRT: runs a bundle's engine on the NVIDIA GPU that it was built on."""

from __future__ import annotations

from typing import Any, ClassVar, final

import tensorrt

from runtimes.nvidia.engine_runtime import EngineRuntime


@final
class TensorRT(EngineRuntime):
    """An engine of TensorRT 10.3 to 11.x."""

    BACKEND = "tensorrt"
    API: ClassVar[Any] = tensorrt


RUNTIME = TensorRT
