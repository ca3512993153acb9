"""The memory of a board: how much kernels may take of it, and how much work took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from boards import meminfo, orin_nano, write_files

from runtimes.board.memory import GIB, MIB, Memory, MemoryUse, MemoryWatch, board_workspace, memory, workspace_of


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    assert memory(orin_nano(tmp_path)) == Memory(7802916 * 1024, GIB)
    assert memory(tmp_path / "none") is None
    write_files(tmp_path, {"proc/meminfo": "MemTotal: 12 kB\n"})
    assert memory(tmp_path) is None
    (tmp_path / "proc" / "meminfo").write_bytes(b"\xff\nMemTotal: 12 kB\nMemAvailable: 5 kB\n")
    assert memory(tmp_path) == Memory(12 << 10, 5 << 10)


@pytest.mark.parametrize(
    ("board", "total_gib", "mib"),
    [
        ("Orin Nano 4 GB", 3.4, 256),
        ("Orin Nano 8 GB", 7.4, 512),
        ("Orin NX 16 GB", 15.3, 2048),
        ("AGX Orin 32 GB", 29.9, 4096),
        ("AGX Orin 64 GB", 61.4, 8192),
        ("Thor 128 GB", 122.8, 16384),
    ],
)
def test_the_size_of_a_board_decides_the_scratch_memory(board: str, total_gib: float, mib: int) -> None:
    total = int(total_gib * GIB)
    assert workspace_of(Memory(total, total)) == mib * MIB, board
    assert workspace_of(Memory(total, 200 * MIB)) == 100 * MIB, "never more than half of what is free"


def test_only_a_jetson_has_a_preset(tmp_path: Path) -> None:
    assert board_workspace(orin_nano(tmp_path / "nano")) == 512 * MIB
    assert board_workspace(write_files(tmp_path / "desk", {"proc/meminfo": meminfo(8000000, 4000000)})) is None


def test_the_least_that_was_available_is_seen(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/meminfo": meminfo(8 << 20, 6 << 20)})
    with MemoryWatch(tmp_path) as watch:
        write_files(tmp_path, {"proc/meminfo": meminfo(8 << 20, 2 << 20)})
        end = time.monotonic() + 10
        while watch.use == MemoryUse(8 * GIB, 6 * GIB, 6 * GIB) and time.monotonic() < end:
            time.sleep(0.01)
        write_files(tmp_path, {"proc/meminfo": meminfo(8 << 20, 5 << 20)})
    assert watch.use == MemoryUse(8 * GIB, 6 * GIB, 2 * GIB)
    assert watch.use.peak_bytes == 4 * GIB
    assert str(watch.use) == "4.0 GiB at its peak, of 6.0 available and 8.0 in all"
    with MemoryWatch(tmp_path / "none") as none:
        pass
    assert none.use is None
