"""The machine of a benchmark: what it tells, and what its key is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_results import MACHINE

from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.measure import peak_memory_bytes
from runtimes.benchmark.roof import library_names, measure_roofs
from runtimes.cores import usable_cores
from runtimes.errors import BackendUnavailable


def test_this_machine_is_described() -> None:
    found = this_machine()
    assert found.processor
    assert 1 <= found.usable_cores <= found.cores
    assert found.memory_bytes is None or found.memory_bytes > 1 << 28
    assert found.versions["numpy"] == np.__version__
    assert found == replace(this_machine(), load=found.load)
    assert found.key == this_machine().key


def test_governors_and_the_driver_are_read_where_they_are(tmp_path: Path) -> None:
    for number, name in enumerate(("powersave", "performance", "powersave")):
        folder = tmp_path / f"sys/devices/system/cpu/cpufreq/policy{number}"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{name}\n")
    assert this_machine(tmp_path).governors == ("performance", "powersave")
    assert this_machine(tmp_path / "none").governors == ()


def test_the_key_is_of_what_decides_speed() -> None:
    same = replace(MACHINE, load=9.0, governors=("powersave",), system="Linux 7 x86_64")
    assert same.key == MACHINE.key
    for other in (
        replace(MACHINE, processor="Another"),
        replace(MACHINE, usable_cores=2),
        replace(MACHINE, versions={"onnxruntime": "1.33.0"}),
    ):
        assert other.key != MACHINE.key


def test_a_machine_is_busy_by_its_load_for_each_core() -> None:
    assert not MACHINE.is_busy
    assert replace(MACHINE, load=3.0).is_busy
    assert not replace(MACHINE, load=None).is_busy


def test_the_peak_of_memory_is_this_processes_own(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1000 kB\n")
    assert peak_memory_bytes(status) == 2 << 20
    status.write_text("Name:\tpython\n")
    assert peak_memory_bytes(status) is None
    assert peak_memory_bytes(tmp_path / "none") is None


@pytest.mark.parametrize("library", library_names())
def test_every_library_multiplies_matrices_in_the_types_it_says(library: str) -> None:
    try:
        found = measure_roofs(library, "cpu", usable_cores(), size=64)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert {"fp32"} <= {one.dtype for one in found} <= {"fp32", "bf16", "int8"}
    assert all(one.macs_per_s > 0 and (one.library, one.size) == (library, 64) for one in found)
