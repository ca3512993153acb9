"""Run a model: one interface over all backends, bundles, and the parity check.

    with open_runtime("resnet50-fp16") as model:
        logits = model.run({"input": images})["logits"]

Needs numpy and Pillow only; a backend's own package is imported when the backend is opened. The names below are
imported on first use, so that a command's `--help` stays quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtimes._open import available_backends, backend_names, open_runtime
    from runtimes.base import Runtime
    from runtimes.bundle import Bundle
    from runtimes.manifest import Manifest
    from runtimes.parity.budget import Budget
    from runtimes.parity.compare import ParityReport, compare
    from runtimes.parity.measures import Accuracy, Comparison
    from runtimes.preprocess import Preprocess, open_image
    from runtimes.specs import BatchRange, TensorSpec

# Read by onnxruntime 1.29 and newer when it is imported, here or in a process that this one starts: left alone it
# writes a device's id and a database of events into the home folder, and reports them (onnxruntime#27379).
# ORT_DISABLE_TELEMETRY=0 in the environment is left as it is.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "available_backends": "_open",
    "backend_names": "_open",
    "open_runtime": "_open",
    "Runtime": "base",
    "Bundle": "bundle",
    "Manifest": "manifest",
    "Accuracy": "parity.measures",
    "Budget": "parity.budget",
    "Comparison": "parity.measures",
    "ParityReport": "parity.compare",
    "compare": "parity.compare",
    "Preprocess": "preprocess",
    "open_image": "preprocess",
    "BatchRange": "specs",
    "TensorSpec": "specs",
}

__all__ = [
    "Accuracy",
    "BatchRange",
    "Budget",
    "Bundle",
    "Comparison",
    "Manifest",
    "ParityReport",
    "Preprocess",
    "Runtime",
    "TensorSpec",
    "available_backends",
    "backend_names",
    "compare",
    "open_image",
    "open_runtime",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'runtimes' has no attribute '{name}'")
    return getattr(importlib.import_module(f"runtimes.{_MODULES[name]}"), name)
