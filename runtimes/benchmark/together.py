"""Time calls that several threads make at once, as the clients of a server do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def rate_together(call: Callable[[], int], threads: int, seconds: float, calls: int) -> tuple[float, tuple[float, ...]]:
    """Images a second where each thread makes one call after another, and the seconds of each call.

    They go on for so many seconds, and until they have made so many calls between them; the rate is over all the time,
    to the end of the last call.

    Args:
        call: returns how many images it ran.
    """
    start = time.perf_counter()

    def one_after_another(least: int) -> tuple[int, list[float], float]:
        images, end = 0, start
        taken: list[float] = []
        while len(taken) < least or end - start < seconds:
            begin = time.perf_counter()
            images += call()
            end = time.perf_counter()
            taken.append(end - begin)
        return images, taken, end

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(one_after_another, [math.ceil(calls / threads)] * threads))
    images, taken, ends = zip(*done, strict=True)
    return sum(images) / (max(ends) - start), tuple(second for each in taken for second in each)
