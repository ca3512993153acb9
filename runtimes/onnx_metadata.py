"""Read an ONNX file's metadata, where exports write precision and target, without the package onnx and the weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

METADATA = 14
"""The field of ModelProto that holds its pairs of key (field 1) and value (field 2): onnx.proto."""
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""Wire types: protobuf.dev, "Encoding"."""
LONGEST_ENTRY = 1 << 16
LONGEST_VARINT = 10


def metadata_of(model: Path | bytes) -> dict[str, str]:
    """The metadata of an ONNX file, or of its content; as much as can be read of a file that is none."""
    found: dict[str, str] = {}
    try:
        with io.BytesIO(model) if isinstance(model, bytes) else model.open("rb") as file:
            while (tag := _varint(file)) is not None:
                size = _size(file, tag & 7)
                if size is None:
                    break
                if tag == METADATA << 3 | LENGTH and size <= LONGEST_ENTRY:
                    fields = _texts(file.read(size))
                    found[fields.get(1, "")] = fields.get(2, "")
                else:
                    file.seek(size, io.SEEK_CUR)
    except (OSError, OverflowError, ValueError):  # sizes beyond what a file can have
        pass
    return found


def _texts(entry: bytes) -> dict[int, str]:
    """The texts of a message by their fields' numbers."""
    file, texts = io.BytesIO(entry), {}
    while (tag := _varint(file)) is not None and tag & 7 == LENGTH:
        texts[tag >> 3] = file.read(_varint(file) or 0).decode("utf-8", "replace")
    return texts


def _size(file: IO[bytes], kind: int) -> int | None:
    """How many bytes the value that comes takes; None for a type that there is not."""
    if kind == LENGTH:
        return _varint(file)
    if kind == VARINT:
        return 0 if _varint(file) is not None else None
    return {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind)


def _varint(file: IO[bytes]) -> int | None:
    """The next number; None at the end of the file, or where there is none."""
    value = 0
    for place in range(LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    return None
