"""Export a ResNet, by its name or from a checkpoint, to a bundle that is proven to compute what the model does.

from pathlib import Path
from exporter import ExportPlan, export

bundle = export(ExportPlan("resnet50", Path("build/resnet50-fp16"), precision="fp16", weights="random"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.pipeline.export import Export, export
    from exporter.pipeline.plan import ExportPlan

# Imported when they are asked for: `resnet-export --help` imports this package, and torch takes seconds.
_MODULES = {"Export": "pipeline.export", "ExportPlan": "pipeline.plan", "export": "pipeline.export"}

__all__ = ["Export", "ExportPlan", "export"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'exporter' has no attribute '{name}'")
    return getattr(importlib.import_module(f"exporter.{_MODULES[name]}"), name)
