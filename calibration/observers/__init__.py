"""Plug-ins: observers, which choose a threshold from a tensor's histogram.

Each file has `OBSERVERS`, a mapping from a name on the command line (`--calibrator NAME`) to an `Observer`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from calibration.histogram import Histogram
from runtimes._plugins import plugin_names
from runtimes.errors import UnknownName


class Observer(Protocol):
    """Chooses the largest magnitude that INT8 is to hold."""

    def __call__(self, histogram: Histogram) -> float:
        """The magnitude that the largest quantized value, 127, stands for: 0 where all values are, else above 0.

        Args:
            histogram: of a tensor's magnitudes, with at least one value; stays as it is.
        """


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
