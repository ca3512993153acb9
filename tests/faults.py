"""Make the functions that touch the disk fail at one call of a run, as a disk does that is full, old or far away.

Python's own files, and the functions of `os` that make, rename, list and sync. Libraries that write past Python are
not seen; the files of this package are all written through it.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import Ran

WRITING = frozenset({"create", "write", "mkdir", "fsync", "close", "link", "symlink"})
"""What a full disk refuses."""
OF_PATH = ("mkdir", "rename", "replace", "link", "symlink", "listdir", "scandir", "chmod")
"""Functions of `os` whose first argument is the path; each is an operation of its name."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        at: the number of the operation that fails first, from 0; None lets all succeed, and counts them.
        error: of `errno`. Of a short read or write, 0: half of what was asked for is done, and nothing is raised.
        lasts: do all later operations that write fail, too, as on a full disk?
    """

    at: int | None
    error: int = errno.EIO
    lasts: bool = False


@dataclass
class Disk:
    """The folder that faults are in, and what was done to it."""

    root: Path
    fault: Fault
    done: list[tuple[str, str]] = field(default_factory=list)
    opened: dict[int, str] = field(default_factory=dict)
    failed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sees(self, path: object) -> str | None:
        """A path below the root, as text; None for any other."""
        if isinstance(path, int):
            return self.opened.get(path)
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.path.abspath(os.fsdecode(path))
        return text if Path(text).is_relative_to(self.root) else None

    def meet(self, operation: str, path: str) -> bool:
        """Count an operation. Raises the fault where it is due; True where less than asked for is to be done."""
        with self._lock:
            number, fault = len(self.done), self.fault
            self.done.append((operation, path))
            if fault.at is None or number < fault.at:
                return False
            if number > fault.at and not (fault.lasts and operation in WRITING):
                return False
            self.failed = True
        if not fault.error:
            return True
        raise OSError(fault.error, os.strerror(fault.error), None if operation in ("write", "read") else path)


class _File(io.FileIO):
    """A file that meets the disk's faults."""

    def __init__(self, disk: Disk, file: Any, mode: str, path: str, opener: Any = None) -> None:
        self._disk, self._path = disk, path
        super().__init__(file, mode, opener=opener)
        disk.opened[self.fileno()] = path

    def write(self, data: Any, /) -> int:
        if self._disk.meet("write", self._path):
            data = memoryview(data).cast("B")
            data = data[: max(1, len(data) // 2)]
        return super().write(data)

    def readinto(self, buffer: Any, /) -> int:
        if self._disk.meet("read", self._path):
            buffer = memoryview(buffer).cast("B")
            buffer = buffer[: max(1, len(buffer) // 2)]
        return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> bytes:
        short = self._disk.meet("read", self._path)
        return super().read(max(1, size // 2) if short and size is not None and size > 1 else size)

    def readall(self) -> bytes:
        self._disk.meet("read", self._path)
        return super().readall()

    def close(self) -> None:
        if self.closed:
            return
        self._disk.opened.pop(self.fileno(), None)
        super().close()
        if self.mode != "rb":
            self._disk.meet("close", self._path)


@contextmanager
def faulty_disk(root: Path, fault: Fault) -> Iterator[Disk]:
    """Everything below `root` is on a disk with this fault."""
    disk, real_open = Disk(root, fault), io.open

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *more: Any, **named: Any
    ) -> Any:
        path = disk.sees(file)
        if path is None:
            return real_open(file, mode, buffering, encoding, *more, **named)
        if not isinstance(file, int):
            disk.meet("create" if set(mode) & set("wxa") else "open", path)
        raw = _File(disk, file, mode.replace("b", "").replace("t", ""), path, named.pop("opener", None))
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        stream = kind(raw)
        if "b" in mode:
            return stream
        return io.TextIOWrapper(stream, encoding or "utf-8", *more, **named)

    def descriptor(path: Any, flags: int, *more: Any, **named: Any) -> int:
        seen = disk.sees(path)
        if seen is not None:
            disk.meet("create" if flags & os.O_CREAT else "open", seen)
        found = _OS["open"](path, flags, *more, **named)
        if seen is not None:
            disk.opened[found] = seen
        return int(found)

    def closed(descriptor: int) -> None:
        disk.opened.pop(descriptor, None)
        _OS["close"](descriptor)

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(os, "open", descriptor)
        patch.setattr(os, "close", closed)
        patch.setattr(os, "dup2", lambda *_: None)  # a command that fails to write lets go of its stdout
        for name in (*OF_PATH, "fsync", "sendfile"):
            operation = {"replace": "rename", "sendfile": "write"}.get(name, name)
            patch.setattr(os, name, _meeting(disk, operation, _OS[name]))
        yield disk


def _meeting(disk: Disk, operation: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        path = disk.sees(arguments[0]) if arguments else None
        if path is not None:
            disk.meet(operation, path)
        return real(*arguments, **named)

    return call


_OS = {name: getattr(os, name) for name in (*OF_PATH, "open", "close", "fsync", "sendfile")}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def points(done: list[tuple[str, str]]) -> list[int]:
    """The first and the last of each operation on each file: those between meet the same code. Hidden names differ in
    their random part alone."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, (operation, path) in enumerate(done):
        found.setdefault((operation, re.sub(r"[0-9a-f]{16}", "", path)), []).append(number)
    return sorted({place for places in found.values() for place in (places[0], places[-1])})


FAULTS = ((errno.ENOSPC, True), (errno.EIO, False), (errno.EINTR, False), (0, False))
"""A full disk, which stays full; a broken sector; an interrupted call; a short read or write."""


def every_fault(
    root: Path, fresh: Callable[[], object], command: Callable[[], Ran], *, thorough: bool
) -> Iterator[tuple[Disk, Ran, str]]:
    """Run a command once for every point of what it does below `root`, and fail there: with each of FAULTS, or, if not
    `thorough`, with one after the other in turn.

    Args:
        fresh: fills the root, which is empty.

    Yields:
        the disk, what the command gave, and what is there afterwards: `old`, `new`, or what is neither.
    """

    def begin() -> dict[str, bytes]:
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        fresh()
        return snapshot(root)

    begin()
    with faulty_disk(root, Fault(None)) as disk:
        ran = command()
    assert ran.code == 0, ran.err
    new = snapshot(root)
    for number, at in enumerate(points(disk.done)):
        turn = number % len(FAULTS)
        for error, lasts in FAULTS if thorough else FAULTS[turn : turn + 1]:
            before = begin()
            with faulty_disk(root, Fault(at, error, lasts)) as disk:
                ran = command()
            after = snapshot(root)
            other = f"{sorted(after.keys() ^ before.keys())}"
            yield disk, ran, "old" if after == before else "new" if after.keys() == new.keys() else other
