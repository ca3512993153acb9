"""`make strangers` knows its environments, and each of their scripts is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_strangers.py"


@pytest.fixture(name="script", scope="module")
def script_fixture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_strangers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_strangers"] = module
    spec.loader.exec_module(module)
    return module


def test_every_environment_is_pinned_and_has_its_scripts(script: ModuleType) -> None:
    named = {name for one in script.ENVIRONMENTS.values() for name in one.scripts}

    assert named == {path.name for path in (SCRIPT.parent / "strangers").glob("*.py")}
    assert all("==" in requirement for one in script.ENVIRONMENTS.values() for requirement in one.requirements)


def test_an_unknown_environment_is_refused() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), "caffe"], capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert run.stderr.startswith("expected names among tensorflow, modelopt")


def test_quantization_tools_are_given_a_file_and_images(script: ModuleType, tmp_path: Path) -> None:
    import numpy as np
    import onnx

    script.write_source(tmp_path)

    onnx.checker.check_model(str(tmp_path / "float.onnx"))
    assert np.load(tmp_path / "calibration.npz")["input"].shape == (64, 3, 64, 64)
