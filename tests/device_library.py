"""Another library's arrays, in pinned memory or on the device. A test file imports the fixture if it names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from standin_cuda import StandinCuda

from runtimes.nvidia.cuda import DeviceBuffer, PinnedBuffer, Stream, copy_to_host
from runtimes.nvidia.dlpack import CUDA_HOST, DeviceArray, tensor_from_dlpack


def pinned(values: NDArray[Any]) -> DeviceArray:
    """A library's array in pinned memory of the CPU."""
    memory = PinnedBuffer(max(values.nbytes, 1))
    memory.view(values.dtype, values.shape)[...] = values
    return DeviceArray(memory, values.shape, values.dtype.name, device=(CUDA_HOST, 0))


@dataclass
class Library:
    """Another library that uses the device in a stream of its own, and waits for nothing."""

    cuda: StandinCuda
    stream: Stream

    def made(self, values: NDArray[Any]) -> DeviceArray:
        """An array that will hold these values once the stream gets there."""
        memory = DeviceBuffer(values.nbytes)
        kept = values.copy()

        def fill() -> None:
            self.cuda.view(memory.pointer, kept.dtype, kept.shape)[...] = kept

        self.cuda.enqueue(self.stream.handle, fill, writes=[(memory.pointer, kept.nbytes)])
        return DeviceArray(memory, kept.shape, kept.dtype.name, ready=self.stream.record())

    def read(self, array: DeviceArray) -> NDArray[Any]:
        """An array's values, as this stream finds them."""
        tensor = tensor_from_dlpack(array, self.stream.handle)
        size = int(np.prod(tensor.shape)) * 4
        with PinnedBuffer(size) as memory:
            copy_to_host(memory.pointer, tensor.pointer, size, self.stream)
            self.stream.synchronize()
            return memory.view(tensor.dtype, tensor.shape).copy()


@pytest.fixture(name="library")
def library_fixture(cuda: StandinCuda) -> Iterator[Library]:
    with Stream() as stream:
        yield Library(cuda, stream)
        stream.synchronize()
