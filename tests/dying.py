"""Children that die at a point of their protocol, in place of those that serve; a new interpreter imports them from here."""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from runtimes.child import start_child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def before_reading(connection: Connection) -> None:
    die()


def while_reading(connection: Connection) -> None:
    os.read(connection.fileno(), 1000)
    die()


def after_reading(connection: Connection) -> None:
    connection.recv()
    die()


def before_the_length_is_out(connection: Connection) -> None:
    connection.recv()
    os.write(connection.fileno(), b"\0\0")
    die()


def while_answering(connection: Connection) -> None:
    connection.recv()
    answer = bytes(ForkingPickler.dumps(("ok", "", list(range(10_000)))))
    os.write(connection.fileno(), struct.pack("!i", len(answer)) + answer[: len(answer) // 2])
    die()


def by_a_signal_without_a_name(connection: Connection) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 5)
    time.sleep(60)


POINTS = (
    *(before_reading, while_reading, after_reading, before_the_length_is_out, while_answering),
    by_a_signal_without_a_name,
)


def after_answering(connection: Connection) -> None:
    connection.recv()
    connection.send(("ok", "", 7))
    die()


# --- work for a child that serves ---


def on_a_full_disk(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/file")


def out_of_memory(*_: Any) -> Any:
    raise MemoryError


def well(*_: Any) -> Any:
    return "ok", 7


# --- a parent that is killed ---


def waits(connection: Connection) -> None:
    connection.send(os.getpid())
    time.sleep(600)


def parent() -> None:
    """Start a child, say its number, and wait to be killed."""
    child = start_child(waits)
    sys.stdout.write(f"{child.connection.recv()}\n")
    sys.stdout.flush()
    time.sleep(600)


if __name__ == "__main__":
    import dying

    dying.parent()
