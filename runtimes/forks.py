"""Forked processes: a library's threads and its driver's state stay with the parent, and so a fork may wait for them
without end."""

from __future__ import annotations

import os
import sys

from runtimes.errors import BackendUnavailable

STAY_BEHIND = ("torch", "openvino", "tensorrt", "tensorrt_rtx")
"""Packages that do not work in the fork of a process that uses them: OpenMP's threads (pytorch#17199), TBB's, CUDA."""
_inherited: set[str] = set()


def _note_fork() -> None:
    _inherited.update(name for name in STAY_BEHIND if name in sys.modules)


os.register_at_fork(after_in_child=_note_fork)


def check_own_import(package: str) -> None:
    """Check that a package of STAY_BEHIND was not imported before this process was forked.

    Raises:
        BackendUnavailable: it was.
    """
    if package in _inherited:
        raise BackendUnavailable(
            f"expected a process that imports {package} itself, got the fork of one that had imported it, where its "
            f"threads and devices stay; start processes with multiprocessing's 'spawn', or fork before the import"
        )
