"""scripts/plain_sessions.py: what a plain session makes of INT8 bundles, and which bundles it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import onnxruntime as ort
import pytest
from click.testing import CliRunner
from int8_exports import bundle_fixture, pictures_fixture  # noqa: F401  # pytest finds them by their names
from script_modules import script_module

from runtimes.bundle_writing import write_manifest
from runtimes.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="script", scope="module")
def script_fixture() -> ModuleType:
    return script_module("plain_sessions")


@pytest.mark.slow
def test_a_row_for_each_interpreter_and_exit_0_within_the_limit(script: ModuleType, bundle: Path) -> None:
    done = CliRunner().invoke(script.main, [str(bundle), "--python", sys.executable, "--python", sys.executable])
    assert done.exit_code == 0, done.output
    head, _, *rows = [line for line in done.output.splitlines() if line.startswith("|")]
    assert head == "| onnxruntime | resnet20, as written | resnet20, plain | resnet20, plain, biases inside |"
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert rows[0].startswith(f"| {ort.__version__} | ")
    written, plain, _ = (float(cell) for cell in rows[0].split("|")[2:5])
    assert plain == pytest.approx(written, abs=script.MOST_OFF_DB)


def test_a_bundle_of_another_precision_is_refused_in_one_line(
    script: ModuleType, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_text("the model")
    write_manifest(tmp_path, manifest)
    done = CliRunner().invoke(script.main, [str(tmp_path)])
    assert done.exit_code == 2
    assert f"expected an int8 bundle of one output, got {manifest.precision}" in done.output
    assert "export one with --int8" in done.output
    assert "\n" not in done.output.strip()
