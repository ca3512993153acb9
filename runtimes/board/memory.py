"""The memory that a Jetson's GPU and CPU share: how much of it work takes, and how much a build's kernels may.

Sources: the kernel's Documentation/filesystems/proc.rst (`MemAvailable`).
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.board.jetpack import this_board

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on; JetPack 6 has 3.10

ROOT = Path("/")
MEMINFO = "proc/meminfo"
GIB, MIB = 1 << 30, 1 << 20
INTERVAL_S = 0.05
WORKSPACES = ((6, 256), (12, 512), (24, 2048), (48, 4096), (96, 8192))
"""(GiB, MiB): on a board with less memory than that, a kernel's scratch memory is limited to so much. They are Orin
Nano 4 GB; Orin Nano and NX 8 GB; NX 16 GB; AGX 32 GB; AGX 64 GB."""
LARGEST_WORKSPACE = 16384
"""MiB, on a board with more: Thor, with 128 GB."""
SHARED_PART = 2
"""A kernel may have 1/SHARED_PART of what is free: the system needs the rest."""


@dataclass(frozen=True)
class Memory:
    """A machine's memory, in bytes; `available_bytes` can be had without swapping."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class MemoryUse:
    """What work took of a machine's memory: its own share, and that of whatever else began meanwhile.

    Attributes:
        available_bytes: before it began.
        lowest_bytes: the least that was available meanwhile.
        workspace_bytes: the most scratch memory that a kernel was allowed; None for the library's own limit.
    """

    total_bytes: int
    available_bytes: int
    lowest_bytes: int
    workspace_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        return max(self.available_bytes - self.lowest_bytes, 0)

    def __str__(self) -> str:
        return (
            f"{self.peak_bytes / GIB:.1f} GiB at its peak, of {self.available_bytes / GIB:.1f} available and "
            f"{self.total_bytes / GIB:.1f} in all"
        )


def memory(root: Path = ROOT) -> Memory | None:
    """The machine's memory; None where the system does not tell.

    Args:
        root: where `proc` is.
    """
    text = ""
    with suppress(OSError):
        text = (root / MEMINFO).read_text(errors="replace")
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB$", text, re.M)}
    return Memory(found["MemTotal"], found["MemAvailable"]) if len(found) == 2 else None


def workspace_of(here: Memory) -> int:
    """The scratch memory that a kernel may have on a board with this memory, in bytes: by the size of the board, and
    never more than half of what is available."""
    preset = next((mib for gib, mib in WORKSPACES if here.total_bytes < gib * GIB), LARGEST_WORKSPACE)
    return min(preset * MIB, here.available_bytes // SHARED_PART)


def board_workspace(root: Path = ROOT) -> int | None:
    """`workspace_of` the Jetson that this runs on; None elsewhere."""
    here = memory(root) if this_board(root) is not None else None
    return None if here is None else workspace_of(here)


class MemoryWatch:
    """Watches a machine's memory while its block runs; `use` tells what it took, None where the system does not tell.

    GPU and CPU share a Jetson's memory, so that this is both. A thread samples it every 50 ms.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._start = memory(root)
        self._lowest = self._start
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    @property
    def use(self) -> MemoryUse | None:
        start, lowest = self._start, self._lowest
        if start is None or lowest is None:
            return None
        return MemoryUse(start.total_bytes, start.available_bytes, lowest.available_bytes)

    def __enter__(self) -> Self:
        if self._start is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._start is not None:
            self._thread.join()
            self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        now = memory(self._root)
        if now is not None and self._lowest is not None and now.available_bytes < self._lowest.available_bytes:
            self._lowest = now
