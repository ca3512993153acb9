"""Watch a reader at a stranger's file: what it may not do, and how long and how large it may become."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from memory_growth import RESET, peak_kib

from runtimes.errors import ResnetExportError

MOST_MIB, PROCESSOR_S, WALL_S = 200, 5.0, 60.0
TEMPORARY = f"{tempfile.gettempdir()}/tmp"
"""How Python's own temporary files and folders begin."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ON_PATHS = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.",
)
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "os.putenv",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "pickle.find_class",
    "webbrowser.open",
)


class Forbidden(BaseException):
    """A reader did what no file may make it do. No Exception, so that no reader catches it."""


class TooLong(BaseException):
    """A reader took too long."""


class Finding(AssertionError):
    """A reader did not keep to what is held of it."""


@dataclass
class _Watched:
    """What the audit hook, which cannot be removed again, goes by: may these folders be written to? None: unwatched."""

    folders: tuple[str, ...] | None = None
    hooked: bool = False
    done: str = ""


_watched = _Watched()


def held(
    read: Callable[[Path], object], path: Path, *, writes: Path | None = None, named: str = ""
) -> Exception | None:
    """Read a file as a user would make the reader do, and hold it to what is held of every reader.

    Args:
        named: what a message may name in place of the file.

    Returns:
        the error of ours that it raised, if it did.

    Raises:
        Finding: another exception, a message without the file's name or of many lines, too long, too large, a write
            outside of `writes`, a process, a connection, or code that was run.
    """
    error: Exception | None = None
    try:
        with _memory_below(path), _watch(writes):
            read(path)
    except ResnetExportError as refused:
        error = refused
    except (Exception, Forbidden, TooLong) as other:
        raise Finding(f"{type(other).__name__}: {str(other)[:300]} at {_place(other)}") from other
    if _watched.done:  # it was stopped, and something swallowed even that
        raise Finding(f"Forbidden: {_watched.done}")
    if error is not None:
        _check_message(error, path, named)
    return error


def _check_message(error: Exception, path: Path, named: str) -> None:
    said = str(error)
    if path.name not in said and not (named and named in said):
        raise Finding(f"no name of the file in: {said[:300]} at {_place(error)}")


def _place(error: BaseException) -> str:
    """The last lines of the package, and the very last, that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        one for one in frames if any(f"/{room}/" in one.filename for room in ("runtimes", "calibration", "exporter"))
    ]
    return " < ".join(
        f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in [*own[-2:], *frames[-1:]][::-1]
    )


@contextmanager
def _watch(writes: Path | None) -> Iterator[None]:
    if not _watched.hooked:
        _watched.hooked = True
        sys.addaudithook(_audit)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    _watched.done = ""
    _watched.folders = () if writes is None else (str(writes),)
    try:
        yield
    finally:
        _watched.folders = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise TooLong(
        f"more than {PROCESSOR_S:g} s of the processor" if number == signal.SIGPROF else f"more than {WALL_S:g} s"
    )


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched.folders is None:
        return
    said = ""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        said = "" if _is_inside(arguments[0]) else f"opened {arguments[0]!r} for writing"
    elif event.startswith(ON_PATHS):
        below = isinstance(arguments[-1], int) and arguments[-1] >= 0  # a folder's descriptor
        said = "" if below or _is_inside(arguments[0]) else f"{event} of {arguments[0]!r}"
    elif event == "ctypes.dlopen":  # Pillow's own library, when it reads its first picture
        said = "" if _is_installed(arguments[0]) else f"{event} {arguments}"
    elif event.startswith(FORBIDDEN) or (event == "exec" and _is_foreign(arguments[0])):
        said = f"{event} {str(arguments)[:200]}"
    if said and not _is_importing():
        _watched.done = said
        raise Forbidden(said)


def _is_inside(path: object) -> bool:
    folders = _watched.folders or ()
    if not isinstance(path, str | bytes | os.PathLike):
        return isinstance(path, int)  # a descriptor was opened before, and judged then
    text = os.path.abspath(os.fsdecode(path))
    own = (os.devnull, *folders)
    return text in own or text.startswith((TEMPORARY, *(f"{folder}/" for folder in own)))


def _is_foreign(code: object) -> bool:
    """Code of a text and not of a file; typing, dataclasses, and PyTorch's tracer make such of their own."""
    by = sys._getframe(2).f_code.co_filename
    return not os.path.isabs(str(getattr(code, "co_filename", ""))) and not _is_installed(by)


def _is_installed(path: object) -> bool:
    """Does it lie where Python and its packages do? None is this process itself."""
    return path is None or os.path.abspath(str(path)).startswith((sys.prefix, sys.base_prefix))


def _is_importing() -> bool:
    """Modules that are imported late run code, of this machine and not of a file."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _memory_below(path: Path) -> Iterator[None]:
    size = 0
    with suppress(OSError):
        size = sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else path.stat().st_size
    RESET.write_text("5")
    before = peak_kib()
    try:
        yield
    finally:
        grown = (peak_kib() - before) / 1024 - size / (1 << 20)
        if grown > MOST_MIB:
            raise Finding(f"the peak of the memory grew by {grown:.0f} MiB more than the file's own size")
