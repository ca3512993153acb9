"""Why a builder would refuse a bundle, without loading it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.engines.refusal import build_refusal
from runtimes.bundle import Bundle
from runtimes.kernels import KernelCount
from runtimes.manifest import Manifest


@pytest.mark.parametrize(
    ("changes", "backend", "version", "said"),
    [
        ({}, "tensorrt", "10.3.0.30", ""),
        ({"opset": 22, "precision": "bf16"}, "tensorrt", "10.3.0.30", "the bundle needs opset 22 (bf16), and TensorRT"),
        ({"opset": 22, "precision": "bf16"}, "tensorrt", "10.13.3.9", ""),
        ({"opset": 22, "precision": "bf16"}, "tensorrt", "", ""),  # not installed
        ({}, "tensorrt", "of.today", ""),
        ({"target": "cpu", "kernels": KernelCount(1, 1, 0, 0)}, "tensorrt-rtx", "1.7.1", "the bundle is for cpu"),
    ],
)
def test_what_a_builder_refuses(
    manifest: Manifest, changes: dict[str, object], backend: str, version: str, said: str
) -> None:
    bundle = Bundle(Path("bundle"), replace(manifest, **changes))  # type: ignore[arg-type]  # each case names a field
    found = build_refusal(bundle, backend, version)
    assert found.startswith(said)
    assert bool(found) == bool(said)
