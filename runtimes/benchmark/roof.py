"""The machine's own peak: how many multiply-accumulates a second a product of large matrices reaches, in each type."""

from __future__ import annotations

import time
from collections.abc import Callable

import runtimes.benchmark.products as libraries
from runtimes._plugins import load_plugin, plugin_names
from runtimes.benchmark.results import Roof

SIZES = {"cpu": 2048, "cuda": 8192}
CALLS, MOST_S = 9, 1.5
"""Calls of each product, and the longest that they may take."""


def library_names() -> tuple[str, ...]:
    """The libraries that a product may be measured with; imports none of them."""
    return plugin_names(libraries.__file__)


def measure_roofs(library: str, provider: str, threads: int, size: int | None = None) -> tuple[Roof, ...]:
    """The rates of a library's products, each that of the fastest of some calls: it is a peak that is looked for.

    Raises:
        BackendUnavailable: the library is not installed.
    """
    module = load_plugin(libraries, library, kind="library", remedy=f"pip install '{library}'")
    size = size or SIZES[provider]
    return tuple(
        Roof(dtype, provider, size**3 / _seconds(call), library, size)
        for dtype, call in module.products(provider, size, threads)
    )


def _seconds(call: Callable[[], None]) -> float:
    taken: list[float] = []
    for place in range(CALLS + 2):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        if place >= 2 and sum(taken) > MOST_S:
            break
    return min(taken[2:])
