"""An engine of a few kernels: what `EngineRuntime` asks of TensorRT, and no more, over the stand-in for CUDA or, by PyTorch, over CUDA
itself. It needs no TensorRT. Its kernels use memory that is there before they are queued, as an engine's do, so that they can be captured;
products would not, since cuBLAS allocates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from standin_cuda import StandinCuda

from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.loading import LoadedEngine
from runtimes.specs import BatchRange

BATCH = BatchRange(2, 3, 4)
INPUT, OUTPUT = "input", "output"
WIDTHS = {INPUT: 64, OUTPUT: 32}


def weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A factor and a summand for each place of the input."""
    factors, summands = np.random.default_rng(0).standard_normal((2, WIDTHS[INPUT]), np.float32)
    return factors, summands


def answer(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, 64) -> (rows, 32): the halves of a scaled, shifted and rectified row, added."""
    factors, summands = weights()
    left, right = np.split(np.maximum(inputs * factors + summands, 0), 2, axis=1)
    result: NDArray[np.float32] = left + right
    return result


class Api:
    """In place of the module `tensorrt`."""

    __version__ = "0"
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    nptype = staticmethod(np.dtype)

    class ILogger:
        """The base of loggers."""


class FoldingRuntime(EngineRuntime):
    BACKEND = "folding"
    API: ClassVar[Any] = Api


Context = Callable[[], Any]


def opened(make_context: Context) -> FoldingRuntime:
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda place: [*WIDTHS][place],
        get_tensor_mode=lambda name: "in" if name == INPUT else "out",
        get_tensor_dtype=lambda name: np.float32,
        get_tensor_shape=lambda name: (-1, WIDTHS[name]),
        get_tensor_profile_shape=lambda name, place: [
            (rows, WIDTHS[name]) for rows in (BATCH.min, BATCH.opt, BATCH.max)
        ],
        create_execution_context=make_context,
    )
    facts: Any = None
    return FoldingRuntime(LoadedEngine(SimpleNamespace(), engine, facts, Path("folding")))  # type: ignore[arg-type]  # in TensorRT's place


class _Context:
    """Shapes and addresses."""

    def __init__(self) -> None:
        self.rows = 0
        self.pointers: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.pointers[name] = pointer
        return True


class StandinContext(_Context):
    """Over the stand-in for CUDA."""

    def __init__(self, cuda: StandinCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def execute_async_v3(self, stream_handle: int) -> bool:
        rows, pointers = self.rows, dict(self.pointers)

        def view(name: str) -> NDArray[Any]:
            return self.cuda.view(pointers[name], np.float32, (rows, WIDTHS[name]))

        def work() -> None:
            view(OUTPUT)[...] = answer(view(INPUT))

        regions = {name: (pointers[name], rows * width * 4) for name, width in WIDTHS.items()}
        self.cuda.enqueue(stream_handle, work, reads=[regions[INPUT]], writes=[regions[OUTPUT]])
        return True


class TorchContext(_Context):
    """Over CUDA, by PyTorch's kernels in the runtime's own stream."""

    def __init__(self) -> None:
        super().__init__()
        self.factors, self.summands = (torch.from_numpy(each).cuda() for each in weights())
        self.hidden = torch.empty(BATCH.max, WIDTHS[INPUT], device="cuda")
        self.memory: dict[str, torch.Tensor] = {}
        torch.cuda.synchronize()  # they were copied in another stream

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        described = {"shape": (BATCH.max, WIDTHS[name]), "typestr": "<f4", "data": (pointer, False), "version": 3}
        self.memory[name] = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=described), device="cuda")
        return super().set_tensor_address(name, pointer)

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = torch.cuda.ExternalStream(stream_handle)  # type: ignore[no-untyped-call]  # of torch
        with torch.inference_mode(), torch.cuda.stream(stream):
            hidden = self.hidden[: self.rows]
            torch.mul(self.memory[INPUT][: self.rows], self.factors, out=hidden)
            hidden.add_(self.summands).relu_()
            width = WIDTHS[OUTPUT]
            torch.add(hidden[:, :width], hidden[:, width:], out=self.memory[OUTPUT][: self.rows])
        return True
