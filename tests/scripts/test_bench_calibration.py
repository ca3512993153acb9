"""`scripts/bench_calibration.py`: which steps of an export stand beside the calibration pass."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from script_modules import script_module

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_calibration.py"
SECONDS = {
    "weights": 9.0,
    "simplify": 9.0,
    "equalize": 1.0,
    "calibrate": 4.0,
    "choose ranges": 0.5,
    "lower to int8": 0.25,
}
SECONDS |= {"measure sensitivity": 0.25, "save": 9.0, "prove": 9.0}


@pytest.fixture(name="bench", scope="module")
def bench_fixture() -> ModuleType:
    return script_module("bench_calibration")


def test_what_lowers_the_graph_is_beside_the_calibration_pass_whatever_its_steps_are_called(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(bench.beside_calibration(SECONDS)) == [
        "equalize",
        "choose ranges",
        "lower to int8",
        "measure sensitivity",
    ]
    bench.show_steps(SECONDS)
    shown = capsys.readouterr().out
    assert "repairs, sensitivity and lowering / the calibration pass: 0.50" in shown
    assert "prove" not in shown
