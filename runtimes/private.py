"""Files and folders that only this user may write to, because their content is run, or vouches for what is run."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from runtimes.errors import BackendUnavailable

OTHERS_MAY_WRITE, OTHERS_MAY = 0o022, 0o077
CACHE_VARIABLE = "XDG_CACHE_HOME"
CACHE_REMEDY = f"set {CACHE_VARIABLE} to a folder that you alone may write to"


def home_folder(variable: str, default: str) -> Path:
    """The folder that an environment variable names, or else `default` in the home folder.

    A relative path is ignored, as the XDG Base Directory Specification asks.

    Raises:
        BackendUnavailable: this user has no home folder.
    """
    given = os.environ.get(variable, "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home() / default
    except RuntimeError as error:
        raise BackendUnavailable(
            f"this user has no home folder; set {variable} to a folder that you may write to"
        ) from error


def private_folder(base: Path, *names: str, remedy: str) -> Path:
    """The folder `base/names...`, made with mode 0700 where it is missing. From the first name on, each folder must be
    writable by this user alone.

    Raises:
        BackendUnavailable: it cannot be made, or one of them is a link, another user's, or writable by others; ends
            with `remedy`.
    """
    folder = base
    try:
        for parent in (*reversed(base.parents), base):
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            problem = _problem(folder.lstat())
            if problem:
                raise BackendUnavailable(
                    f"expected {folder} to be a folder that you alone may write to, got {problem}; remove it, or "
                    f"{remedy}"
                )
    except OSError as error:
        raise BackendUnavailable(f"cannot make the folder {folder}: {error.strerror}; {remedy}") from error
    return folder


def private_cache(*names: str) -> Path:
    """A private folder below `$XDG_CACHE_HOME`, by default `~/.cache`, for compiled models: they are code.

    Raises:
        BackendUnavailable: as `home_folder` and `private_folder` do.
    """
    return private_folder(cache_base(), *names, remedy=CACHE_REMEDY)


def cache_base() -> Path:
    """`$XDG_CACHE_HOME`, by default `~/.cache`. Raises as `home_folder` does."""
    return home_folder(CACHE_VARIABLE, ".cache")


def _problem(state: os.stat_result) -> str | None:
    if stat.S_ISLNK(state.st_mode):
        return "a link"
    if state.st_uid != os.geteuid():
        return f"one of another user ({state.st_uid})"
    if state.st_mode & OTHERS_MAY_WRITE:
        return f"one that others may write to (mode {stat.S_IMODE(state.st_mode):o})"
    return None


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; pipes and devices are refused, since reading those may never end.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "it is no file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Read a regular file of at most `most_bytes`; of a larger one no more is read.

    Raises:
        OSError: it cannot be read, is no file, or is larger.
    """
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
    return data
