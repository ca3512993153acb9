"""What a builder measured, kept in a file for its next build."""

from __future__ import annotations

from pathlib import Path

from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BadInput
from runtimes.private import read_regular

MOST_BYTES = 1 << 30


def timing_file(cache: Path, version: str, targets: tuple[str, ...]) -> Path:
    """Where the measurements of one library version and GPU are kept: they are of no use to another, which would begin the file anew."""
    return cache.with_name(f"{cache.name}.{version}-{'+'.join(targets)}")


def earlier(cache: Path | None) -> bytes | None:
    """An earlier build's measurements; empty where there are none yet, None where none are to be kept.

    Raises:
        BadInput: they cannot be read, or there is no folder to keep them in.
    """
    if cache is None:
        return None
    if not cache.absolute().parent.is_dir():
        raise BadInput(f"--timing-cache: cannot write {cache}: there is no folder {cache.parent}; make it first")
    try:
        return read_regular(cache, MOST_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BadInput(f"--timing-cache: cannot read {cache}: {error.strerror}; give another file") from error


def keep(cache: Path, data: bytes) -> None:
    """
    Raises:
        BadInput: the file cannot be written.
    """
    try:
        write_in_one_step(cache, data)
    except OSError as error:
        raise BadInput(f"--timing-cache: the engine is built and kept, but {cache} cannot be written: {error.strerror}; give another file") from error
