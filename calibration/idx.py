"""IDX files: the layout of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist/, "FILE FORMATS")."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BadInput

UNSIGNED_BYTE = 0x08
MOST_DIMENSIONS = 32
"""numpy 1 has no more."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzip-compressed or not.

    Raises:
        BadInput: the file is missing, truncated, or not an IDX file of unsigned bytes.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise BadInput(f"{path}: expected an IDX file of unsigned bytes, got a file that starts with {data[:4].hex() or 'nothing'}")
    rank = data[3]
    start = 4 + 4 * rank
    if not 1 <= rank <= MOST_DIMENSIONS or len(data) < start:
        raise BadInput(
            f"{path}: expected the sizes of 1 to {MOST_DIMENSIONS} dimensions, got {rank} in {len(data)} bytes; the file is truncated or not IDX"
        )
    shape: tuple[Any, ...] = struct.unpack_from(f">{rank}I", data, 4)
    if len(data) - start != math.prod(shape):
        raise BadInput(
            f"{path}: expected {math.prod(shape)} bytes of data for shape {shape}, got {len(data) - start}; the file is truncated or not IDX"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
