"""Plug-ins: how a threshold is read off a histogram of magnitudes. Each file has `OBSERVERS`: name on the command line -> function.

A function takes a `Histogram` that is not empty and returns the magnitude that the largest quantized value, 127, stands for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from calibration.histogram import Histogram
from runtimes._plugins import plugin_names
from runtimes.errors import UnknownName

Observer = Callable[[Histogram], float]


def observers() -> Mapping[str, Observer]:
    """Every observer of every file, by name."""
    found: dict[str, Observer] = {}
    for name in plugin_names(__file__):
        found.update(importlib.import_module(f"{__name__}.{name}").OBSERVERS)
    return found


def find_observer(name: str) -> Observer:
    """The observer of that name.

    Raises:
        UnknownName: there is none.
    """
    known = observers()
    if name not in known:
        raise UnknownName("calibrator", name, known)
    return known[name]
