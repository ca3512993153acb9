"""A bundle with an engine that TensorRT-RTX built, and plans to put beside it. A test file imports its fixtures."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions
from runtimes import Bundle, Manifest
from runtimes.bundle_writing import write_manifest
from runtimes.errors import ResnetExportError
from runtimes.nvidia.engine_choice import Here
from runtimes.nvidia.engine_file import EngineFacts, facts_of, json_from_facts, seal_facts
from runtimes.nvidia.plan_files import engine_name, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key

REBUILD = "resnet-deploy build"
RTX = "tensorrt-rtx"


@pytest.fixture(name="built", scope="module")
def built_fixture(tiny_model: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine that TensorRT-RTX built for two GPUs."""
    folder = tmp_path_factory.mktemp("files") / "bundle"
    folder.mkdir()
    shutil.copy(tiny_model / "model.onnx", folder)
    write_manifest(folder, manifest)
    build_engine(BuildPlan(Bundle.open(folder), RTX, BuildOptions(targets=("sm86", "sm120"))), lambda *_: None)
    return folder


@pytest.fixture(name="bundle")
def bundle_fixture(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture(name="engine")
def engine_fixture(bundle: Path) -> Path:
    (path,) = (bundle / "engines").glob("*.engine")
    return path


@pytest.fixture(name="facts")
def facts_fixture(engine: Path) -> EngineFacts:
    return facts_of(engine)


@pytest.fixture(name="here")
def here_fixture(facts: EngineFacts) -> Here:
    """A machine that loads the engine."""
    return Here(RTX, facts.version, "sm86")


def said(error: ResnetExportError, remedy: str = REBUILD) -> str:
    """The message, checked to be one line that names what to do."""
    message = str(error)
    assert "\n" not in message
    assert remedy in message
    assert "expected" in message or "; " in message
    return message


def tensorrt_plan(*version: int, size: int = 1000) -> bytes:
    """As TensorRT's begin; what follows is nobody's."""
    return b"ftrt" + bytes(20) + bytes(version) + bytes(size)


def add_plan(folder: Path, plan: bytes, facts: EngineFacts, **changes: Any) -> Path:
    """Add a plan to a bundle, and a sidecar that says that it is the one, as a build on this machine does."""
    facts = replace(facts, engine_sha256=hashlib.sha256(plan).hexdigest(), engine_bytes=len(plan), **changes)
    path = folder / "engines" / engine_name(facts.backend, facts.version, facts.targets, facts.batch, facts.options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    sidecar_of(path).write_bytes(json_from_facts(seal_facts(facts, ensure_machine_key())))
    return path


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A change of a sidecar's facts as one of its bytes."""

    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return edit
