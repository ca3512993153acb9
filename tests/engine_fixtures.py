"""Fixtures of the tests that run an engine over the stand-ins. A test file imports those that it or they name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_bundles import BATCH, add_engine, leaks, opened
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt
from tiny_answers import INPUT, OUTPUT, images

from runtimes import Manifest
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.bundle_writing import write_manifest
from runtimes.nvidia import cuda_call
from runtimes.nvidia.engine_runtime import EngineRuntime


@pytest.fixture(name="cuda")
def cuda_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinCuda]:
    """In place of CUDA; what a test leaves behind fails it."""
    checker = StandinCuda()
    monkeypatch.setattr(cuda_call, "cudart", checker)
    yield checker
    assert leaks(checker) == []


@pytest.fixture(name="api")
def api_fixture(cuda: StandinCuda) -> Iterator[StandinTensorRT]:
    """In place of TensorRT: `import tensorrt` finds it."""
    standin = StandinTensorRT(cuda)
    with imported_as_tensorrt(standin):
        yield standin


@pytest.fixture(name="reference", scope="module")
def reference_fixture(tiny_model: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime.open(tiny_model / "model.onnx") as opened:
        yield opened


@pytest.fixture(name="folder")
def folder_fixture(tiny_model: Path, manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle without an engine, for batches of two to four."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(tiny_model / "model.onnx", bundle)
    write_manifest(bundle, replace(manifest, batch=BATCH))
    return bundle


@pytest.fixture(name="proven")
def proven_fixture(folder: Path, reference: OnnxRuntime, manifest: Manifest) -> Path:
    """The bundle with golden inputs and logits."""
    np.savez(folder / "golden.npz", inputs=images(4), logits=reference.run({INPUT: images(4)})[OUTPUT])
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(manifest, batch=BATCH))
    return folder


@pytest.fixture(name="engine")
def engine_fixture(folder: Path, api: StandinTensorRT) -> Path:
    return add_engine(folder, api)


@pytest.fixture(name="runtime")
def runtime_fixture(engine: Path) -> Iterator[EngineRuntime]:
    with opened(engine) as runtime:
        yield runtime
