"""docs/parity.md: written from what was measured, and true of what is measured again."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import script_module

from exporter.lowering.registry import precision_names
from exporter.models.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    return script_module("parity_matrix")


@pytest.fixture(scope="module")
def measured(matrix: ModuleType) -> Any:
    return json.loads(matrix.MEASURED.read_text())


def test_the_table_is_what_was_measured(matrix: ModuleType, measured: Any) -> None:
    assert matrix.TABLE.read_text() == matrix.table_from_measurements(measured, matrix.newest_gpu_result())


def test_every_model_was_measured_in_every_precision_and_is_in_budget(measured: Any) -> None:
    found = {
        (model, precision): cell["ok"]
        for model, cells in measured["cells"].items()
        for precision, cell in cells.items()
    }
    assert found == {(model, precision): True for model in MODELS for precision in precision_names()}


def test_a_cell_measured_again_is_the_one_that_was_written(matrix: ModuleType, measured: Any) -> None:
    found = matrix.cell("resnet20", "fp16")
    written = measured["cells"]["resnet20"]["fp16"]
    assert (found["ok"], found["bytes"], set(found["backends"])) == (True, written["bytes"], set(written["backends"]))
    for name in ("onnxruntime", "simulation"):
        assert found["backends"][name]["max_relative_error"] == pytest.approx(
            written["backends"][name]["max_relative_error"], rel=0.5
        )
    assert found["backends"][matrix.BUILT]["convolutions"] == written["backends"][matrix.BUILT]["convolutions"]


def test_each_row_says_when_it_was_measured(matrix: ModuleType, measured: Any) -> None:
    cells = {
        name: {**found, "fp16": {**found["fp16"], "date": "2026-01-01"}} for name, found in measured["cells"].items()
    }
    cells["resnet20"]["fp16"]["date"] = "2026-02-03"
    lines = matrix.table_from_measurements({**measured, "cells": cells}, None).splitlines()
    rows = lines[lines.index("## FP16") + 4 :][: len(MODELS)]
    assert rows[list(MODELS).index("resnet20")].startswith("| resnet20 | 2026-02-03 | ")
    assert sum(" | 2026-01-01 | " in row for row in rows) == len(MODELS) - 1


def test_another_script_s_measurements_are_no_gpu_s(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "MEASURED", tmp_path / "parity-matrix.json")
    for name in ("parity-matrix", "accuracy"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert matrix.newest_gpu_result() is None
    for date in ("2026-01-01", "2026-02-01"):
        (tmp_path / f"{date}-a-GPU.json").write_text(json.dumps({"date": date}))
    assert matrix.newest_gpu_result() == {"date": "2026-02-01"}


def test_gpu_figures_take_the_place_of_not_verified(matrix: ModuleType, measured: Any) -> None:
    without = matrix.table_from_measurements(measured, None)
    assert "GPU columns: not verified" in without
    parity = {"max_relative_error": 0.7123, "sqnr_db": 40.0, "top1_agreement": 1.0, "ok": True}
    gpu = {
        "device": {"name": "a GPU"},
        "date": "2026-01-01",
        "bundles": {"resnet20-fp16": {"tensorrt": {"parity": parity}}},
    }
    shown = matrix.table_from_measurements(measured, gpu)
    assert "GPU columns: a GPU, 2026-01-01" in shown
    assert "7.1e-01, 100.00%" in shown
    failed = {**gpu, "bundles": {"resnet20-fp16": {"tensorrt": {"failed": "no driver"}}}}
    assert "7.1e-01" not in matrix.table_from_measurements(measured, failed)


@pytest.mark.slow
def test_every_model_in_every_precision_on_every_backend(matrix: ModuleType) -> None:
    failed = {
        f"{model} {precision}": found
        for model in MODELS
        for precision in precision_names()
        if not (found := matrix.cell(model, precision))["ok"]
    }
    assert not failed
