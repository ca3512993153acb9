"""`scripts/bench_runtime.py`: both sides are timed in turn, and every part runs on a real bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from script_modules import script_module

from runtimes import Bundle, available_backends

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_runtime.py"


@pytest.fixture(name="bench", scope="module")
def bench_fixture() -> ModuleType:
    return script_module("bench_runtime")


def test_the_ratio_is_of_both_sides_taken_in_turn(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def call(name: str, seconds: float) -> object:
        calls.append(name)
        sleep(seconds)
        return None

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now, sleep=sleep))

    found = bench.compare_calls(lambda: call("bare", 0.01), lambda: call("ours", 0.03), 4)
    assert 2 < found["ratio"] < 4
    assert found["bare_ms"] < found["ours_ms"]
    one_side = 1 + bench.CALLS
    assert calls[::one_side] == ["ours", "bare", "bare", "ours", "ours", "bare", "bare", "ours"]


def test_every_backend_that_is_here_is_measured_beside_its_library(bench: ModuleType, exported: Path) -> None:
    found = bench.bench_call(Bundle.open(exported), 1)
    assert set(found) == set(bench.BARE) & set(available_backends())
    assert all(0.1 < one["ratio"] < 100 for one in found.values())


def test_pictures_are_streamed_and_each_step_is_measured_alone(
    bench: ModuleType, exported: Path, tmp_path: Path
) -> None:
    paths = bench.write_pictures(tmp_path, 4)
    for path, size in zip(paths, [(375, 500), (500, 375)], strict=False):
        with Image.open(path) as picture:
            assert picture.size == size
    found = bench.bench_stream(Bundle.open(exported), paths, 1)
    slowest = min(found[f"{step}_per_s"] for step in ("decode", "preprocess", "run"))
    assert found["of_slowest"] == pytest.approx(found["stream_per_s"] / slowest, abs=0.01)
    assert found["all_cores_busy_per_s"] > 0


@pytest.mark.slow
def test_the_command_is_measured_beside_a_bare_script_that_gives_the_same_answer(
    bench: ModuleType, exported: Path, tmp_path: Path
) -> None:
    (path,) = bench.write_pictures(tmp_path, 1)
    command = [sys.executable, str(SCRIPT), str(exported), "--part", "command", "--rounds", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert "(" in found["machine"]["processor"]
    assert set(found[exported.name]["command"]) == {"bare_s", "ours_s", "difference_s", "others"}
    bare, ours = bench.commands(Bundle.open(exported), path)
    said = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in (bare, ours)]
    first_share = said[0].split()[0]
    assert first_share in said[1]
