"""What a shared library needs, read from its file: nothing is loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtimes.errors import BadInput

ELF64_LITTLE = b"\x7fELF\x02\x01"
LOAD, DYNAMIC = 1, 2
END, NEEDED, STRINGS, STRINGS_SIZE, RPATH, RUNPATH = 0, 1, 5, 10, 15, 29
LARGEST_FILE = 1 << 40
MOST_STRINGS, MOST_ENTRIES = 64 << 20, 100_000


@dataclass(frozen=True)
class Dynamic:
    """What the loader reads of a library.

    Attributes:
        needed: the names of the libraries that it needs.
        folders: where it says that they lie, with `$ORIGIN` for its own folder.
        before_environment: are these looked at before `LD_LIBRARY_PATH` (RPATH), or after it (RUNPATH)?
    """

    needed: tuple[str, ...]
    folders: tuple[str, ...]
    before_environment: bool = False


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def dynamic_of(path: Path) -> Dynamic:
    """Read a library's dynamic section (System V ABI, "Dynamic Section"; 64 bits, little-endian).

    Raises:
        BadInput: it is no such library, or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _dynamic(file)
        except (struct.error, ValueError, UnicodeDecodeError, OverflowError) as error:
            raise BadInput(f"expected a 64-bit ELF library, got {path}: {error}; install its package again") from error


def _dynamic(file: BinaryIO) -> Dynamic:
    header = file.read(64)
    if header[:6] != ELF64_LITTLE:
        raise ValueError("it has no such header")
    (table,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    segments = list(_segments(file, table, size, count))
    dynamic = next((one for one in segments if one.kind == DYNAMIC), None)
    if dynamic is None:
        return Dynamic((), ())
    entries = list(_entries(file, dynamic))
    values = dict(entries)
    text = _strings(file, segments, values.get(STRINGS), values.get(STRINGS_SIZE, 0))
    needed = tuple(_string(text, value) for tag, value in entries if tag == NEEDED)
    place = values.get(RUNPATH, values.get(RPATH))
    folders = () if place is None else tuple(filter(None, _string(text, place).split(":")))
    return Dynamic(needed, folders, RUNPATH not in values)


def _segments(file: BinaryIO, table: int, size: int, count: int) -> Iterator[_Segment]:
    for place in range(count):
        _go_to(file, table + place * size)
        kind, _flags, offset, address, _physical, length = struct.unpack("<IIQQQQ", file.read(40))
        yield _Segment(kind, offset, address, length)


def _entries(file: BinaryIO, dynamic: _Segment) -> Iterator[tuple[int, int]]:
    _go_to(file, dynamic.offset)
    for _ in range(min(dynamic.size // 16, MOST_ENTRIES)):
        tag, value = struct.unpack("<QQ", file.read(16))
        if tag == END:
            return
        yield tag, value


def _strings(file: BinaryIO, segments: list[_Segment], address: int | None, size: int) -> bytes:
    """The string table, which the dynamic section names by its address in memory."""
    for one in segments:
        if address is not None and one.kind == LOAD and one.address <= address < one.address + one.size:
            _go_to(file, one.offset + address - one.address)
            return file.read(min(size, MOST_STRINGS))
    raise ValueError("its strings are nowhere")


def _go_to(file: BinaryIO, place: int) -> None:
    if place > LARGEST_FILE:
        raise ValueError("a part of it lies outside of it")
    file.seek(place)


def _string(text: bytes, place: int) -> str:
    if place >= len(text):
        raise ValueError("a name lies outside of it")
    return text[place : text.index(b"\0", place)].decode()
