"""The lock of a folder."""

from __future__ import annotations

import fcntl
import os
import signal
import warnings
from pathlib import Path

import pytest

from runtimes.locks import folder_lock


@pytest.mark.parametrize("shared", [False, True])
def test_a_process_that_was_forked_while_it_was_held_does_not_hold_it_any_longer(tmp_path: Path, shared: bool) -> None:
    with warnings.catch_warnings(), folder_lock(tmp_path, shared=shared):
        warnings.simplefilter("ignore")  # from Python 3.12 on: a process with threads forks
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody holds it
    finally:
        os.close(folder)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
