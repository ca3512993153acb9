"""numpy's BLAS: FP32, with as many threads as it takes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from runtimes.cores import usable_cores


def products(provider: str, size: int, threads: int) -> Iterator[tuple[str, Callable[[], None]]]:
    if provider != "cpu" or threads != usable_cores():  # it takes no other number
        return
    first, second, product = (np.ones((size, size), np.float32) for _ in range(3))

    def call() -> None:
        np.matmul(first, second, out=product)

    yield "fp32", call
