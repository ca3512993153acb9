"""The timing cache: a builder's measurements, kept in a file for its next build."""

from __future__ import annotations

from pathlib import Path

from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BadInput
from runtimes.private import read_regular

MOST_BYTES = 1 << 30


def timing_file(cache: Path, version: str, targets: tuple[str, ...]) -> Path:
    """The file for one library version and GPU; another would find the measurements useless, and overwrite them."""
    return cache.with_name(f"{cache.name}.{version}-{'+'.join(targets)}")


def read_timings(cache: Path | None) -> bytes | None:
    """Read an earlier build's measurements: empty if there are none yet, None without a cache.

    Raises:
        BadInput: they cannot be read, or the cache's folder does not exist.
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


def write_timings(cache: Path, data: bytes) -> None:
    """Write a build's measurements.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        write_in_one_step(cache, data)
    except OSError as error:
        raise BadInput(
            f"--timing-cache: the engine is built and kept, but {cache} cannot be written: {error.strerror}; "
            "give another file"
        ) from error
