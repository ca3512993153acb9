"""Read `.npy` and `.npz` files from untrusted sources: a header's sizes are checked against the file's before memory is
allocated."""

from __future__ import annotations

import ast
import io
import math
import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
"""In bytes; numpy's own limit, since `ast.literal_eval` may need unlimited memory for a longer one."""
PLAIN_TYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,9}|[|]b1")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes. With other methods zipfile unpacks pieces of any size."""
MOST_GROWTH, FREE_BYTES = 100, 64 << 20
"""An array of more than FREE_BYTES may unpack to at most so many times its size in the file. Pictures shrink to a tenth
at best, zeros to a thousandth."""
CHUNK = 1 << 20
SHOWN = 8


@dataclass(frozen=True)
class ArrayHeader:
    """The header of a `.npy` file: the array's type and shape, and the byte at which its data starts."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def arrays_from_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an `.npz` file, and those of the optional ones that it has.

    Raises:
        ValueError: says in one line what is wrong: a name is missing, no archive of plain arrays, a header that does
            not fit, an array that unpacks to more than MOST_GROWTH times its size.
    """
    try:
        _check_file(path)
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            missing = [name for name in names if name not in members]
            if missing:
                held = ", ".join(_description(archive, info) for info in list(members.values())[:SHOWN])
                raise ValueError(f"expected an array '{missing[0]}', got {held or 'nothing'}")
            return {name: _array_from_member(archive, members[name]) for name in (*names, *optional) if name in members}
    except Exception as error:
        # zipfile and zlib raise kinds of their own, and what a forged file leads them to: KeyError, NotImplementedError
        raise ValueError(_one_line(error)) from error


def array_from_npy(path: Path) -> NDArray[Any]:
    """Read the array of an `.npy` file.

    Raises:
        ValueError: as `arrays_from_npz`.
    """
    try:
        _check_file(path)
        with path.open("rb") as file:
            return _array_from_file(file, path.stat().st_size)
    except Exception as error:  # as above
        raise ValueError(_one_line(error)) from error


def array_from_bytes(data: bytes) -> NDArray[Any]:
    """The array in the content of an `.npy` file.

    Raises:
        ValueError: as `arrays_from_npz`.
    """
    try:
        return _array_from_file(io.BytesIO(data), len(data))
    except Exception as error:  # as above
        raise ValueError(_one_line(error)) from error


def header_from_bytes(data: bytes) -> ArrayHeader:
    """Parse a `.npy` file's header from its first LONGEST_HEADER bytes (numpy.lib.format, versions 1 and 2).

    Raises:
        ValueError: it is no such file, or its array is not of plain numbers or texts.
    """
    if not data.startswith(MAGIC) or len(data) < 12 or data[6] not in (1, 2):
        raise ValueError("it is no array in numpy's format")
    width = "<H" if data[6] == 1 else "<I"
    start = 8 + struct.calcsize(width)
    (length,) = struct.unpack_from(width, data, 8)
    if start + length > len(data):
        raise ValueError(f"the header of its array is cut short, or longer than {LONGEST_HEADER} bytes")
    try:
        facts = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        kind, fortran, shape = facts["descr"], facts["fortran_order"], facts["shape"]
    except Exception as error:  # SyntaxError, RecursionError, MemoryError, and what comes of facts that are none
        raise ValueError("the header of its array cannot be read") from error
    if not isinstance(kind, str) or not PLAIN_TYPE.fullmatch(kind):
        raise ValueError(f"expected an array of plain numbers, got one of type {str(kind)[:40]}, which is not read")
    if (
        not isinstance(shape, tuple)
        or not all(type(size) is int and size >= 0 for size in shape)
        or not isinstance(fortran, bool)
    ):
        raise ValueError(f"the header of its array gives the shape {str(shape)[:40]}")
    dtype = np.dtype(kind)
    if dtype.itemsize == 0:
        raise ValueError(f"expected an array of plain numbers, got one of type {kind}, which holds nothing")
    return ArrayHeader(dtype, shape, fortran, start + length)


def check_growth(size: int, stored: int, most: int = MOST_GROWTH) -> None:
    """Refuse data that unpacks to so much more than it takes in its file that it looks made to fill the memory.

    Raises:
        ValueError: `stored` bytes unpack to `size`, which is more than FREE_BYTES and than `most` times as many.
    """
    if size > max(FREE_BYTES, most * stored):
        raise ValueError(
            f"it unpacks from {stored:,} bytes to {size:,}, more than {most} times as many; store it "
            "uncompressed if so meant"
        )


def _check_file(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
        raise OSError("it is no file")


def _array_from_file(file: IO[bytes], size: int) -> NDArray[Any]:
    header = header_from_bytes(file.read(LONGEST_HEADER))
    _check_size(header, size)
    file.seek(header.start)
    return _array(header, file)


def _header_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayHeader:
    if info.compress_type not in METHODS:
        raise ValueError(f"'{info.filename}' is compressed by another method than deflate")
    with archive.open(info) as stream:
        return header_from_bytes(stream.read(LONGEST_HEADER))


def _description(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    name = info.filename.removesuffix(".npy")
    try:
        header = _header_of_member(archive, info)
    except ValueError:
        return name
    return f"{name} {header.dtype} {header.shape}"


def _array_from_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    header = _header_of_member(archive, info)
    _check_size(header, info.file_size)
    check_growth(info.file_size, info.compress_size)
    with archive.open(info) as stream:
        stream.read(header.start)
        return _array(header, stream)


def _check_size(header: ArrayHeader, size: int) -> None:
    if header.start + header.bytes != size:
        raise ValueError(
            f"expected {header.bytes:,} bytes for an array of {header.dtype} {header.shape}, got "
            f"{size - header.start:,}"
        )


def _array(header: ArrayHeader, stream: IO[bytes]) -> NDArray[Any]:
    raw = np.empty(header.bytes, np.uint8)
    for start in range(0, len(raw), CHUNK):
        piece = stream.read(min(CHUNK, len(raw) - start))
        if start + len(piece) != min(start + CHUNK, len(raw)):
            raise ValueError(f"the file ends after {start + len(piece):,} of the {len(raw):,} bytes of its array")
        raw[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    if stream.read(1):
        raise ValueError("there is something behind its array")
    return raw.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
