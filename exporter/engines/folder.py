"""A bundle's `engines/` folder: can it be written, which engine is in it, and what has a killed build left there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimes.bundle_writing import replace_together
from runtimes.errors import BundleError, ResnetExportError
from runtimes.locks import folder_lock
from runtimes.nvidia.engine_file import EngineFacts, facts_of, sidecar_document
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import is_built_here

LOCK = ".lock"
CLOCK_STEP_S = 2.0
"""No file system's times are coarser."""


def check_folder(folder: Path) -> None:
    """Check before the build that engines can be kept in `folder`.

    Raises:
        BundleError: they cannot.
    """
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link, so that engines would be written elsewhere; remove it, and build again")
    if folder.exists() and not folder.is_dir():
        raise write_error(folder, os.strerror(errno.ENOTDIR))
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise write_error(folder, os.strerror(errno.EACCES))


def cached_facts(path: Path, key: str) -> EngineFacts | None:
    """Facts of the engine at `path` if this machine built it, under the same key, and proved it; else None."""
    try:
        facts = facts_of(path)
        built_here = is_built_here(sidecar_document(sidecar_of(path)))
    except ResnetExportError:
        return None
    proven = facts.checked or facts.device is None
    if not (facts.key == key and proven and built_here):
        return None
    mark_newest(path)  # backends load the engine that was asked for last
    return facts


def write_error(path: Path, why: str | None) -> BundleError:
    """The error for a file or folder that cannot be written, with what to do."""
    return BundleError(f"cannot write {path}: {why}; free some room, or copy the bundle to where you may write")


@contextmanager
def staged_engine(path: Path) -> Iterator[Path]:
    """A hidden name beside an engine's, to write it and its sidecar under; what still has that name in the end is
    removed, and what builds of this engine that were killed have left.

    A build holds the lock of a file of its own while it lives: clocks of boards jump by years, so age tells nothing.

    Raises:
        BundleError: the folder cannot be written, or the block raised an OSError; says why.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        _remove_left_over(path)
        staged, lock = _locked_name(path)
        try:
            yield staged
        finally:
            with suppress(OSError):  # the engine is in its place, or what went wrong is on its way
                staged.with_suffix(LOCK).unlink()
                _remove(path, staged.stem.rpartition("-")[2])
            os.close(lock)
    except OSError as error:
        raise write_error(path, error.strerror) from error


def keep_engine(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename a staged engine, its sidecar, and what else belongs to it into place, each `(staged, path)`, the engine
    first. It is then the newest, which backends load, whatever the clock says.

    Raises:
        OSError: one cannot be renamed; the earlier engine is as it was.
    """
    (_, engine), *_ = pairs
    with folder_lock(engine.parent):  # two builds could leave one's engine with the other's sidecar
        replace_together(pairs)
        mark_newest(engine)


def mark_newest(engine: Path) -> None:
    """Date an engine now, or after every other one in its folder: a clock may have jumped back."""
    with suppress(OSError):
        others = (path.stat().st_mtime for path in engine.parent.glob("*.engine") if path != engine)
        newest = max(time.time(), *(written + CLOCK_STEP_S for written in others), 0.0)
        os.utime(engine, (newest, newest))


def _locked_name(path: Path) -> tuple[Path, int]:
    """A hidden name, and the descriptor of its lock. Another build may lock the lock's file in the moment before, and
    remove it; then a new name is taken."""
    while True:
        staged = path.with_name(f".{path.stem}.partial-{secrets.token_hex(8)}{path.suffix}")
        lock = os.open(staged.with_suffix(LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:
            pass  # a file system without locks, where no build clears anything away
        with suppress(FileNotFoundError):
            if staged.with_suffix(LOCK).stat().st_ino == os.fstat(lock).st_ino:
                return staged, lock
        os.close(lock)


def _remove_left_over(path: Path) -> None:
    """Remove the partial files of builds of this engine whose lock nobody holds."""
    with folder_lock(path.parent):  # nobody is renaming
        for token in _partial_files(path):
            with suppress(OSError):
                held = path.with_name(f".{path.stem}.partial-{token}{LOCK}")
                lock = os.open(held, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path, token)
                finally:
                    os.close(lock)


def _remove(path: Path, token: str) -> None:
    """Remove the partial files of one build of an engine."""
    for left in _partial_files(path).get(token, ()):
        with suppress(OSError):
            left.unlink()


def _partial_files(path: Path) -> dict[str, list[Path]]:
    """What builds of an engine have written under hidden names, by the number of the build."""
    pattern = re.compile(rf"\.+{re.escape(path.stem)}(?:\.[a-z.]+)?\.partial-([0-9a-z]+)")
    found: dict[str, list[Path]] = {}
    for one in path.parent.iterdir():
        if match := pattern.match(one.name):
            found.setdefault(match[1], []).append(one)
    return found
