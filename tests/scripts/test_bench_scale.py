"""`scripts/bench_scale.py`: the pictures that it makes, and what it makes of the parts that it measures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from script_modules import script_module

from calibration.data import open_source


@pytest.fixture(name="bench", scope="module")
def bench_fixture() -> ModuleType:
    return script_module("bench_scale")


def test_pictures_are_labelled_and_of_one_size(bench: ModuleType, tmp_path: Path) -> None:
    bench.make_pictures(tmp_path, None, 260)
    source = open_source(str(tmp_path))
    assert source.count == 260
    assert source.classes is not None
    assert len(source.classes) == 10
    sizes = {picture.size for place in (0, 259) if isinstance(picture := source.picture(place), Image.Image)}
    assert sizes == {(500, 375)}


def test_what_bounds_a_cluster_follows_from_the_parts(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.show_cluster(bench.Parts(list_us=10.0, decode_ms=4.0, result_kb=1.0, trip_ms=0.5, count_ms=0.14))
    shown = capsys.readouterr().out
    assert "13 s to list" in shown
    assert "driver: 100,000 images/s" in shown
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["8"])
    assert row.split() == ["8", "2,000", "im/s", "128,000", "13.8", "GB/s", "23", "s"]


def test_every_way_is_held_against_the_plain_loop_on_its_cores(bench: ModuleType) -> None:
    ways = bench.ways()
    assert {way.cores for way in ways} == {way.cores for way in ways if way.name == "plain"}
    assert all(("--ray" in way.options) == (way.name != "plain") for way in ways)
