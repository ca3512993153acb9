"""`scripts/soak.py`: a leak is found by its slope, and every backend that is here is flat in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import Made
from engine_bundles import opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
)
from script_modules import SCRIPTS, script_module

from runtimes import Runtime, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.tuning import Tuning


@pytest.fixture(name="soak", scope="module")
def soak_fixture() -> ModuleType:
    return script_module("soak")


# --- the slope ---


@pytest.mark.parametrize(
    ("each", "noise", "leaks"),
    [(0.0, 200.0, []), (1.0, 200.0, ["KiB"]), (0.1, 5.0, []), (-1.0, 5.0, [])],
    ids=["noise", "a leak under noise", "less than the bound", "less and less"],
)
def test_a_leak_is_a_slope_whose_whole_interval_is_above_the_bound(
    soak: ModuleType, each: float, noise: float, leaks: list[str]
) -> None:
    done = np.arange(241) * 40
    warming_up = 5e4 * np.minimum(done / 1200, 1)  # 50 MB
    slopes = [
        soak.slope_of([*zip(done, 9e5 + each * done + warming_up + jitter, strict=True)])
        for jitter in np.random.default_rng(0).normal(0, noise, (100, 241))
    ]
    assert sum(one.low < each < one.high for one in slopes) >= 85  # 95 are to be expected
    none = soak.Slope(0.0, 0.0, 0.0)
    assert soak.Row("made", "runs", 9600, 0, 900.0, slopes[0], none, none).leaks == leaks


def test_a_handle_in_a_hundred_runs_is_a_leak(soak: ModuleType) -> None:
    samples = [soak.Sample(place * 40, 1e5, 12 + place * 40 // 100, 4) for place in range(241)]
    found = soak.row("made", "runs", samples, 0)
    assert found.leaks == ["handles"]
    assert found.handles.each == pytest.approx(0.01, rel=0.05)
    assert "leaks handles" in soak.table([found])


# --- real work, in small ---


def test_every_kind_of_work_is_done_and_answers_are_the_first_ones(soak: ModuleType, good: Made) -> None:
    open_ = partial(open_runtime, good[1].bundle, "onnxruntime", tuning=Tuning(1))
    rows = soak.soak("onnxruntime", open_, soak.Amount(runs=100, opens=25, threads=3))
    assert [(one.work, one.wrong) for one in rows] == [("runs", 0), ("streams", 0), ("opens", 0), ("threads", 0)]
    assert all(one.done > 0 and one.mib > 0 for one in rows)
    assert not [one for one in rows if "handles" in one.leaks or "threads" in one.leaks], soak.table(rows)


def test_an_engine_gives_back_what_it_takes(soak: ModuleType, engine: Path) -> None:
    rows = soak.soak("tensorrt", lambda: opened(engine), soak.Amount(runs=50, opens=25, threads=2))
    assert [one.work for one in rows] == ["runs", "opens", "threads"]
    assert not any(one.wrong for one in rows)
    assert not [one for one in rows if "handles" in one.leaks or "threads" in one.leaks], soak.table(rows)


def test_lost_handles_and_wrong_answers_are_seen(
    soak: ModuleType, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []
    close = OnnxRuntime._close

    def leaking(self: OnnxRuntime) -> None:
        lost.append(Path("/dev/null").open())  # noqa: SIM115  # left open, as a leak leaves it
        close(self)

    monkeypatch.setattr(OnnxRuntime, "_close", leaking)
    path = tiny_model / "model.onnx"
    found = soak.opens("onnxruntime", lambda: OnnxRuntime.open(path, tuning=Tuning(1)), soak.Amount(opens=30))
    assert "handles" in found.leaks
    with OnnxRuntime.open(path, tuning=Tuning(1)) as runtime:
        feeds = soak.Feeds(runtime)
        assert feeds.wrong(runtime, 3) == 0
        run = runtime._run
        monkeypatch.setattr(runtime, "_run", lambda fed: {name: -value for name, value in run(fed).items()})
        assert feeds.wrong(runtime, 3) == 1
    for file in lost:
        file.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "pytorch"])
def test_a_backend_is_flat(backend: str, good: Made) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPTS / "soak.py"), str(good[1].bundle.folder), "--backend", backend),
            *("--opens", "300", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # threads' own heaps grow for thousands of runs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert [(one["work"], one["wrong"], one["leaks"]) for one in rows] == [
        (work, 0, []) for work in ("runs", "streams", "opens", "threads")
    ]


def test_a_runtime_without_siblings_is_opened_again_for_each_thread(
    soak: ModuleType, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntime, "_sibling", Runtime._sibling)
    opened_here: list[Runtime] = []

    def open_() -> Runtime:
        opened_here.append(OnnxRuntime.open(tiny_model / "model.onnx", tuning=Tuning(1)))
        return opened_here[-1]

    found = soak.threads("onnxruntime", open_, soak.Amount(runs=32, threads=2))
    assert found.wrong == 0
    assert len(opened_here) > 2
