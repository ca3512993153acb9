"""A bundle's `engines/` folder: can it be written, which engine is in it, and what has a killed build left there."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimes.errors import BundleError, ResnetExportError
from runtimes.nvidia.engine_file import EngineFacts, facts_of, sidecar_document
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import is_built_here

LEFT_OVER_S = 86400.0
"""Partial files older than this are of a build that was killed: a build writes them when it is done, and checks them in
minutes."""


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
    with suppress(OSError):
        os.utime(path)  # backends load the engine that was asked for last
    return facts


def write_error(path: Path, why: str | None) -> BundleError:
    """The error for a file or folder that cannot be written, with what to do."""
    return BundleError(f"cannot write {path}: {why}; free some room, or copy the bundle to where you may write")


def remove_left_over(path: Path) -> None:
    """Remove the partial files of builds of this engine that were killed."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.partial-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_OVER_S:
                left.unlink()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock `folder`, if its file system has locks: two builds could leave one's engine with the other's sidecar."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
