"""A board's power mode, clocks and temperatures in a benchmark's result, its lines and its comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from boards import orin_nano
from made_results import MACHINE, entry, result

from exporter.cli import _common
from exporter.verification.report.bench_lines import bench_lines
from runtimes.benchmark.compare import compare_results
from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.result_file import json_from_result, result_from_file
from runtimes.board.power import power


def test_a_boards_state_is_part_of_the_result_and_not_of_the_machines_key(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    assert this_machine(root).power == power(root)
    assert this_machine(root).key == this_machine(tmp_path / "none").key
    assert this_machine(tmp_path / "none").power is None


def test_lines_name_the_state_what_is_wrong_with_it_and_what_was_throttled(tmp_path: Path) -> None:
    slow, full = power(orin_nano(tmp_path / "a")), power(orin_nano(tmp_path / "b", mode=2, locked=True))
    assert slow is not None
    assert full is not None
    made = result(entry("tensorrt"))
    text = "\n".join(bench_lines(replace(made, machine=replace(MACHINE, power=slow))))
    assert "power        power mode 15W, CPU 729 of 1344 MHz, GPU 306 of 612 MHz, 49 C; power mode 15W, not" in text
    assert "(sudo jetson_clocks)" in text
    hot = replace(full, temperatures_c={"gpu-thermal": 97.2}, clocks=(full.clocks[0], replace(full.clocks[1], mhz=408)))
    text = "\n".join(bench_lines(replace(made, machine=replace(MACHINE, power=full), power_after=hot)))
    assert "sudo" not in text
    assert (
        "heat         49 C before the rounds, 97 C after them; GPU fell from 612 to 408 MHz: it was throttled" in text
    )
    text = "\n".join(bench_lines(replace(made, machine=replace(MACHINE, power=full), power_after=full)))
    assert "heat         49 C before the rounds, 49 C after them\n" in text
    assert "power" not in "\n".join(bench_lines(made))


def test_results_keep_it_and_those_of_earlier_versions_are_read(tmp_path: Path) -> None:
    state = power(orin_nano(tmp_path / "board"))
    made = result(entry("tensorrt"))
    with_power = replace(made, machine=replace(made.machine, power=state), power_after=state)
    (tmp_path / "new.json").write_bytes(json_from_result(with_power))
    assert result_from_file(tmp_path / "new.json") == with_power
    document = json.loads(json_from_result(made))
    del document["power_after"], document["machine"]["power"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert result_from_file(tmp_path / "old.json") == made
    assert "power mode none and 15W" in compare_results(made, with_power).machines


def test_a_board_that_is_not_at_full_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _common.warn_of_power(power(orin_nano(tmp_path / "a")), "slower")
    assert capsys.readouterr().err.endswith("are not locked (sudo jetson_clocks): slower\n")
    _common.warn_of_power(power(orin_nano(tmp_path / "b", mode=2, locked=True)), "slower")
    _common.warn_of_power(None, "slower")
    assert capsys.readouterr().err == ""
