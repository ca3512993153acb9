"""What a backend may do to its process; for tests of who survives it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def segfaults(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(*_: Any) -> None:
    os._exit(3)


def hangs(*_: Any) -> None:
    time.sleep(600)
