"""docs/cpu.md's tables of speed are what `scripts/bench_cpu.py` wrote, and its verdicts follow from its intervals."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import SCRIPTS, script_module

from runtimes.benchmark.statistics import Interval

DOCS = SCRIPTS.parent / "docs"


@pytest.fixture
def bench_cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return script_module("bench_cpu")


def measured() -> list[Path]:
    return sorted((DOCS / "measurements").glob("cpu-*.json"))


def test_the_tables_are_what_was_measured(bench_cpu: ModuleType) -> None:
    page = (DOCS / "cpu.md").read_text(encoding="utf-8")
    assert measured()
    for path in measured():
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        assert found["date"] in page
        assert path.name in page
        for model in found["models"]:
            assert "\n".join(bench_cpu.table(model)) in page


def test_a_ratio_holds_where_its_whole_interval_does(bench_cpu: ModuleType) -> None:
    def verdict(low: float | None, high: float | None) -> str:
        said: str = bench_cpu._verdict("speed", Interval(1.0, low, high), 1.0)["verdict"]
        return said

    assert verdict(1.0, 1.2) == "holds"
    assert verdict(0.9, 1.1) == "UNDECIDED"
    assert verdict(None, None) == "UNDECIDED"
    assert verdict(0.8, 0.99) == "SHORT"
