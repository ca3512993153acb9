"""Memory on the device and on the CPU, and numbers to copy between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.nvidia import cuda as _cuda


class Pair:
    """Memory on the device and, pinned, on the CPU, both of `values`' size; the pinned one holds them."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.size = values.nbytes
        self.device, self.pinned = _cuda.DeviceBuffer(self.size), _cuda.PinnedBuffer(self.size)
        self.array = self.pinned.view(values.dtype, values.shape)
        self.array[...] = values

    def upload(self, stream: _cuda.Stream) -> None:
        _cuda.copy_to_device(self.device.pointer, self.pinned.pointer, self.size, stream)

    def download(self, stream: _cuda.Stream) -> None:
        _cuda.copy_to_host(self.pinned.pointer, self.device.pointer, self.size, stream)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self.pinned.close()


def numbers(count: int = 12) -> NDArray[np.float32]:
    return np.arange(1, count + 1, dtype=np.float32)
