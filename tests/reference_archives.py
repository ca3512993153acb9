"""The parts of a `reference.pt2`: read, changed and written again. A test file imports the fixture that it names."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.backends.pytorch import PyTorchRuntime

MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/", "data/constants/"
WEIGHTS_CONFIG, CONSTANTS_CONFIG = f"{WEIGHTS}model_weights_config.json", f"{CONSTANTS}model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
Parts = dict[str, bytes]


def parts_of(path: Path | io.BytesIO) -> Parts:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write_parts(path: Path, parts: Parts, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"reference/{name}", content)
    return path


def changed(parts: Parts, change: Callable[[Any], None], name: str = MODEL) -> Parts:
    document = json.loads(parts[name])
    change(document)
    return {**parts, name: json.dumps(document).encode()}


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


def signature(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


@pytest.fixture(name="good", scope="module")
def good_fixture(tiny_model: Path) -> Parts:
    return parts_of(tiny_model / "reference.pt2")


def run_by_us(path: Path) -> None:
    with PyTorchRuntime.open(path) as model:
        model.run({"input": np.zeros((2, 1, 28, 28), np.float32)})
