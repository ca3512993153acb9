"""Call the CUDA runtime, and turn what it answers into a value or an error."""

from __future__ import annotations

import ctypes
from typing import Any

from cuda.bindings import runtime as cudart  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types

from runtimes.errors import BackendUnavailable

INSUFFICIENT_DRIVER, NO_DEVICE, OUT_OF_MEMORY = 35, 100, 2
REMEDIES = {
    INSUFFICIENT_DRIVER: "update the NVIDIA driver, or use --backend onnxruntime",
    NO_DEVICE: "check that nvidia-smi lists a GPU (a container needs --gpus all), or use --backend onnxruntime",
    OUT_OF_MEMORY: "close other programs that use the GPU, or take a smaller batch",
}

NO_DRIVER = "run on a machine with an NVIDIA GPU and install its driver, or use --backend onnxruntime"


class CudaError(BackendUnavailable):
    """A CUDA call failed: `code` and `name` are its cudaError_t, the message ends with a remedy where one is known."""

    def __init__(self, call: str, code: int, name: str, text: str, remedy: str = "") -> None:
        known = remedy or REMEDIES.get(code, "")
        super().__init__(f"{call}: {name} ({code}): {text}{f'; {known}' if known else ''}")
        self.code = code
        self.name = name


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime, and return what it gives beside its error code: nothing, a value or a tuple.

    Raises:
        CudaError: the code is not cudaSuccess.
    """
    error, *values = getattr(cudart, name)(*arguments)
    if int(error) != 0:
        # clears it; others in the process (PyTorch) would take it for the error of their own next kernel
        cudart.cudaGetLastError()
        code, text = cudart.cudaGetErrorName(error)[1], cudart.cudaGetErrorString(error)[1]
        raise CudaError(name, int(error), code.decode(), text.decode())
    return tuple(values) if len(values) > 1 else values[0] if values else None


def driver_is_here() -> bool:
    """Is the driver's library here? Without it CUDA calls the driver too old, too."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
