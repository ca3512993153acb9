"""IDX files: the layout of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist/, "FILE FORMATS")."""

from __future__ import annotations

import gzip
import io
import math
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.arrays import check_growth
from runtimes.errors import BadInput

UNSIGNED_BYTE = 0x08
MOST_DIMENSIONS = 32
"""numpy 1 has no more."""
GZIP_START = b"\x1f\x8b"


def read_idx(path: Path, name: str | None = None) -> NDArray[np.uint8]:
    """Read the array of unsigned bytes in an IDX file, gzip-compressed or not; no more is unpacked than its header
    says.

    Args:
        name: what to call the file in messages; None takes its path.

    Raises:
        BadInput: the file is missing, truncated, or not an IDX file of unsigned bytes.
    """
    shown = name or str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe would be waited for without end
            raise OSError("it is no file")
        with path.open("rb") as file:
            compressed = file.read(len(GZIP_START)) == GZIP_START
        stored = path.stat().st_size
        with gzip.open(path) if compressed else path.open("rb") as stream:
            return _array(stream, shown, stored, compressed=compressed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(f"cannot read {shown}: {error}") from error


def _array(stream: io.BufferedIOBase, name: str, stored: int, *, compressed: bool) -> NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4 or head[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise BadInput(
            f"{name}: expected an IDX file of unsigned bytes, got a file that starts with {head.hex() or 'nothing'}"
        )
    rank = head[3]
    sizes = stream.read(4 * rank)
    if not 1 <= rank <= MOST_DIMENSIONS or len(sizes) < 4 * rank:
        got = f"{rank} in {len(head) + len(sizes)} bytes"
        raise BadInput(
            f"{name}: expected the sizes of 1 to {MOST_DIMENSIONS} dimensions, got {got}; the file is truncated or not "
            "IDX"
        )
    shape: tuple[Any, ...] = struct.unpack(f">{rank}I", sizes)
    expected, there = math.prod(shape), stored - 4 - 4 * rank
    if compressed:
        check_growth(expected, stored)
    data = stream.read(expected + 1) if compressed or there == expected else b""
    if len(data) != expected:
        found = f"{len(data)}{' or more' if len(data) > expected else ''}" if compressed else there
        raise BadInput(
            f"{name}: expected {expected} bytes of data for shape {shape}, got {found}; the file is truncated or not "
            "IDX"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
