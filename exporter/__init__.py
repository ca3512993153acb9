"""Make model files: from a ResNet's name or checkpoint to a proven bundle.

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

_HOMES = {"Export": "pipeline.export", "ExportPlan": "pipeline.plan", "export": "pipeline.export"}

__all__ = ["Export", "ExportPlan", "export"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter' has no attribute '{name}'")
    return getattr(importlib.import_module(f"exporter.{_HOMES[name]}"), name)
