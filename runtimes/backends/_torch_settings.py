"""PyTorch's number of threads and its rules of arithmetic, of which there is one set for all of a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch


@final
class Settings:
    """Settings that hold for one thread's work at a time, and are put back after it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def exact(self, threads: int) -> Iterator[None]:
        """Compute in true FP32 on so many threads, while no other thread does: with two sets of settings at once each
        would have the other's, and leave them behind."""
        with self._lock, _true_fp32(), _threads(threads):
            yield


SETTINGS = Settings()


@contextmanager
def _true_fp32() -> Iterator[None]:
    """Turn off TF32, which cuDNN's convolutions use by default, and matrix products where a program asked for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute on `count` threads; to set the number and put it back takes less than a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
