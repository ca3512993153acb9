"""OpenVINO's package, imported without its telemetry: use this `ov`, and no import of your own.

`import openvino` sends an event to Google Analytics, from a process of its own, and keeps a client's id under
`~/intel`, unless an environment variable says that it runs in CI (openvino/tools/ovc/__init__.py). Where the package
`openvino-telemetry` is missing it does without, so here it is missing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

TELEMETRY = "openvino_telemetry"


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """In the block, an import of the package fails; one that has been imported before stays."""
    if name in sys.modules:
        yield
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: "not found" to import
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


with _missing(TELEMETRY):
    import openvino as ov
    from openvino import opset13
    from openvino.frontend import FrontEndManager

__all__ = ["FrontEndManager", "core_of_process", "opset13", "ov"]


@functools.cache
def core_of_process() -> ov.Core:
    """OpenVINO's devices, one set for all of the process's life.

    The thread that loads the CPU's gets a larger stack for the handlers of signals. They free it when they end, in
    whatever thread that is, and so the next signal would be a crash (`SigAltStackSetup` in its CPU plugin).
    """
    return ov.Core()
