"""The lock of a folder whose files belong together, such as an engine and its sidecar, and change together."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def folder_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, alone to rename files in it, or shared to open some that belong together. Where the
    file system has no locks, or this user may not look into the folder, nothing is held."""
    with ExitStack() as owned:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            owned.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            # A process that was forked meanwhile has the descriptor, too, and would hold the lock while it lives.
            owned.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield
