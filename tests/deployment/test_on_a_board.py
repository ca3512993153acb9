"""The verbs of a board, in processes that can import what a board has and nothing else, over the stand-in for TensorRT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from board_process import on_board
from engine_fixtures import folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from PIL import Image

from runtimes.nvidia.engine_file import facts_of


def test_a_bundle_is_built_checked_run_and_shown(proven: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "photo.png")
    ran = on_board(tmp_path, "run", proven, "photo.png")
    assert ran.returncode == 3
    assert "no backend can run" in ran.stderr
    assert "tensorrt: bundle has no engine" in ran.stderr.replace(str(proven), "bundle")
    assert "build one here with: resnet-deploy build" in ran.stderr
    assert ran.stderr.endswith("; not installed: tensorrt-rtx, onnxruntime, openvino, pytorch\n")
    built = on_board(tmp_path, "build", proven)
    assert built.returncode == 0, built.stderr
    (engine,) = (proven / "engines").glob("*.engine")
    assert facts_of(engine).checked
    ran = on_board(tmp_path, "run", proven, "photo.png", "--json")
    assert ran.returncode == 0, ran.stderr
    assert "auto chose tensorrt" in ran.stderr
    assert len(json.loads(ran.stdout)["photo.png"]) == 5
    for path in (proven, engine):
        shown = on_board(tmp_path, "inspect", path)
        assert shown.returncode == 0, shown.stderr
    checked = on_board(tmp_path, "check", proven, "--json")
    assert checked.returncode == 0, checked.stderr
    verdicts = {one["backend"]: one["verdict"] for one in json.loads(checked.stdout)["bundles"][0]["backends"]}
    assert verdicts["tensorrt"] == "ok"
    assert {verdict for name, verdict in verdicts.items() if name != "tensorrt"} == {"not here"}


@pytest.mark.slow
def test_a_bundle_is_measured(proven: Path, tmp_path: Path) -> None:
    assert on_board(tmp_path, "build", proven).returncode == 0
    ran = on_board(tmp_path, "bench", proven, "--rounds", 2, "--seconds", 0.01, "--warm-up", 1, "--json")
    assert ran.returncode == 0, ran.stderr
    entries = {one["contender"]["backend"]: one for one in json.loads(ran.stdout)["entries"]}
    assert entries["tensorrt"]["verdict"] == "ok", entries["tensorrt"]
    assert entries["onnxruntime"]["verdict"] == "not here"
