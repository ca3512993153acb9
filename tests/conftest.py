"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Ran, run_main
from traced_once import trace_once

from exporter.cli import deploy as deploy_cli
from exporter.cli import export as export_cli
from exporter.pipeline.plan import DEFAULT_BATCH
from exporter.verification.check import check_bundle
from exporter.verification.plan import CheckPlan
from exporter.verification.verdicts import BundleCheck
from runtimes import Bundle, open_runtime
from runtimes.bundle_writing import write_manifest
from runtimes.manifest import (
    SCHEMA_VERSION,
    CalibrationFacts,
    FileFacts,
    GraphFacts,
    Manifest,
    ModelFacts,
    WeightsFacts,
)
from runtimes.nvidia.trust import KEY_VARIABLE
from runtimes.parity.budget import Budget
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import Evidence
from runtimes.parity.flips import Flips
from runtimes.parity.measures import Accuracy, Comparison
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange, TensorSpec


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all of pytest's processes share."""
    mine = factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def graphs_are_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Exports of one program share its graph: see `traced_once`."""
    trace_once(shared_folder(tmp_path_factory, "graphs"))


@pytest.fixture(scope="session", autouse=True)
def engine_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This machine's engine key, for the tests alone: the one in the home folder is not to be touched."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("key") / "engine.key"
        patch.setenv(KEY_VARIABLE, str(path))
        yield path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the tests' models alone. Others' folders in it (weights, fonts, browsers) are the user's."""
    theirs = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tmp_path_factory.mktemp("cache")
    for path in theirs.glob("*"):
        if path.name != "resnet-export":
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What benchmarks leave behind, for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def builds_in_process() -> Iterator[None]:
    """`resnet-deploy build` builds in the tests' own process, where the stand-ins are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_EXPORT_IN_PROCESS", "1")
        yield


# --- runtimes: one small model in each backend's own file, and a manifest that fits it ---


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx` and `reference.pt2` of a small residual network: float32 (batch, 1, 28, 28) -> (batch, 10)."""
    import onnx
    import torch

    from exporter.graph.trace import onnx_from_program, program_from_module, save_program
    from exporter.models.sources.cifar import CifarResNet

    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program = program_from_module(CifarResNet(1, 1, 10), (1, 28, 28))
    onnx.save(onnx_from_program(program, opset=20, batch=BatchRange(1, 4, 8)), folder / "model.onnx")
    save_program(program, folder / "reference.pt2")
    return folder


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """Every field of a manifest filled, the optional ones too; names no files until `write_manifest` has seen some."""
    budget = Budget(
        0.01,
        max_relative_error=0.01,
        min_agreement=0.995,
        min_cosine=0.99,
        min_sqnr_db=20.0,
        max_accuracy_drop=0.01,
        max_batch_difference=0.01,
        confidence=0.95,
    )
    compared = Comparison(
        True, True, 0.002, 0.0005, 0.001, 0.9999, 60.0, 1.0, 0.98, Flips(1, 0), max_batch_difference=1e-7, images=32
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny-fp32",
        precision="fp32",
        target="tensorrt",
        opset=20,
        versions={"numpy": "2.0.0"},
        model=ModelFacts("tiny", "tests", "cifar", 10, WeightsFacts("file", "0" * 64)),
        inputs=(TensorSpec("input", "float32", ("batch", 1, 28, 28)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
        batch=BatchRange(2, 3, 4),
        preprocess=Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,)),
        graph=GraphFacts(2, 100, 1000, {"Conv": 2}, {"Conv": {"FLOAT": 2}}),
        parity=ParityReport(True, 32, (2, 3, 4), {"onnxruntime": compared}, budget),
        accuracy=Accuracy(32, 0.9, 0.9, (0.7, 1.0), lost=1, gained=1),
        calibration=CalibrationFacts("mse", 512, "0" * 64),
        files={"model.onnx": FileFacts("0" * 64, 1)},
    )


# --- checks of a bundle with that model ---

Made = tuple[BundleCheck, CheckPlan, Evidence]
TINY_BATCH, TINY_IMAGES = BatchRange(1, 4, 8), 16
TINY_LABELS = tuple(f"kind {place}<script>alert('label')</script>" for place in range(10))


@pytest.fixture(scope="session")
def good(tiny_model: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle that is within budget on ONNX Runtime, over its golden inputs."""
    return _checked(tmp_path_factory.mktemp("good") / "tiny-fp32", tiny_model, manifest, turn=0)


@pytest.fixture(scope="session")
def turned(tiny_model: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One whose golden logits are those of the next class: every image flips."""
    return _checked(tmp_path_factory.mktemp("turned") / "tiny-turned", tiny_model, manifest, turn=1)


def _checked(folder: Path, model: Path, manifest: Manifest, *, turn: int) -> Made:
    folder.mkdir()
    for file in ("model.onnx", "reference.pt2"):
        shutil.copy(model / file, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (TINY_IMAGES, 28, 28, 1), np.uint8)
    inputs = manifest.preprocess.normalise(pixels)
    with open_runtime(model / "model.onnx") as runtime:
        logits = runtime.run({"input": inputs})["logits"]
    np.savez(folder / "golden.npz", inputs=inputs, logits=np.roll(logits, turn, axis=1))
    (folder / "labels.txt").write_text("\n".join(TINY_LABELS))
    by_figures = replace(manifest.parity.budget, confidence=None)  # 16 images decide nothing with confidence
    parity = replace(manifest.parity, budget=by_figures)
    write_manifest(folder, replace(manifest, name=folder.name, batch=TINY_BATCH, parity=parity))
    plan = CheckPlan(Bundle.open(folder), ("onnxruntime",), asked=True)
    found, evidence = check_bundle(plan)
    return found, plan, evidence


# --- bundles ---


SMALL_BATCH = BatchRange(1, 2, 4)


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shipped ResNet-20 as a bundle; not to be changed. All of pytest's processes share one export of each form."""
    from exporter import ExportPlan, export

    shared = shared_folder(tmp_path_factory, "shipped")

    def bundle(
        precision: str, features: str | None = None, *, uint8: str | None = None, batch: BatchRange = SMALL_BATCH
    ) -> Bundle:
        folder = shared / f"{precision}-{features}-{uint8}-{batch.max}"
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                export(
                    ExportPlan(
                        "resnet20", folder, precision=precision, features=features, uint8_input=uint8, batch=batch
                    )
                )
        return Bundle.open(folder)

    return bundle


@pytest.fixture(scope="session")
def exported(shipped_bundle: Any) -> Path:
    """The shipped ResNet-20 as `resnet-export resnet20 --fp16` writes it; not to be changed."""
    folder: Path = shipped_bundle("fp16", batch=DEFAULT_BATCH).folder
    return folder


# --- command lines ---


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`resnet-export` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ran:
        return run_main(export_cli.main, arguments, capsys, monkeypatch)

    return call


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`resnet-deploy`."""

    def call(*arguments: object) -> Ran:
        return run_main(deploy_cli.main, arguments, capsys, monkeypatch)

    return call


# --- CUDA ---


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of CUDA; what a test leaves behind fails it."""
    from standin_cuda import StandinCuda

    from runtimes.nvidia import cuda_call

    checker = StandinCuda()
    monkeypatch.setattr(cuda_call, "cudart", checker)
    yield checker
    gc.collect()
    assert checker.leaks() == []
