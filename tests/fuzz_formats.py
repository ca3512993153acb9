"""Spoil files of more than text: arrays, archives, protobuf messages, pickles and safetensors."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random as Draw
from typing import Any

from fuzz_mutate import NUMBERS, TEXTS, spoilt_bytes, spoilt_json


def spoilt_array(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
    """Change the header of a `.npy` file, as text, or its bytes."""
    if draw.random() < 0.5 or len(data) < 12:
        return spoilt_bytes(data, draw, others)
    end = 10 + struct.unpack_from("<H", data, 8)[0]
    header = data[10:end].decode("latin-1")
    swaps = [
        str(draw.choice(NUMBERS)),
        "None",
        "'O'",
        "'|V8'",
        "(1,)*9",
        "'<U99999999'",
        "'<f2'",
        "[('a','<i4')]",
        "True",
        "-" * 200 + "1",
        "(" * 90 + ")" * 90,
        "'<M8[ns]'",
        "1.0",
        "'<i3'",
        "''",
    ]
    words = list(re.finditer(r"'[<>|][a-zA-Z]\d+'|\d+|True|False|\([^)]*\)", header))
    if words:
        found = draw.choice(words)
        header = header[: found.start()] + draw.choice(swaps) + header[found.end() :]
    text = header.rstrip().encode("latin-1") + b"\n"
    return data[:8] + struct.pack("<H", len(text) % 65536) + text + data[end:]


NAMES = ("../x.npy", "/tmp/x.npy", "a\0b.npy", "", "images.npy", "x" * 5000, "data/../../x", "C:x", ".", "labels.npy/")


def spoilt_archive(inner: Callable[[str], Callable[..., bytes]]) -> Callable[..., bytes]:
    """Change entries of a zip archive by `inner(name)`, their names, order and number, or the archive's bytes."""

    def spoilt(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
        kind = draw.random()
        if kind < 0.35:
            return spoilt_bytes(data, draw, others)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = [(one.filename, archive.read(one), one.compress_type) for one in archive.infolist()]
        except Exception:  # spoilt before
            return spoilt_bytes(data, draw, others)
        for _ in range(draw.choice((1, 1, 2))):
            _spoil_entry(entries, inner, draw)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content, method in entries:
                info = zipfile.ZipInfo("x")
                info.filename = name
                info.compress_type = method
                with _no_warnings():
                    archive.writestr(info, content)
        out = buffer.getvalue()
        return spoilt_bytes(out, draw, others) if kind > 0.95 else out

    return spoilt


def _spoil_entry(
    entries: list[tuple[str, bytes, int]], inner: Callable[[str], Callable[..., bytes]], draw: Draw
) -> None:
    if not entries:
        return
    place = draw.randrange(len(entries))
    name, content, method = entries[place]
    kind = draw.randrange(8)
    if kind <= 3:
        content = inner(name)(content, draw)
    elif kind == 4:
        name = draw.choice((*NAMES, *(one[0] for one in entries)))
    elif kind == 5:
        entries.insert(draw.randrange(len(entries)), (name, draw.choice(entries)[1], method))
        return
    elif kind == 6:
        del entries[place]
        return
    else:
        method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        content = content if draw.random() < 0.7 else bytes(draw.choice((*(1 << 10,) * 9, 80 << 20)))
    entries[place] = (name, content, method)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Of names that are there twice, which is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spoilt_message(kind: type[Any]) -> Callable[..., bytes]:
    """Change fields of a protobuf message and of those in it, or its bytes."""

    def spoilt(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
        if draw.random() < 0.15:
            return spoilt_bytes(data, draw, others)
        try:
            message = kind.FromString(data)
        except Exception:  # spoilt before
            return spoilt_bytes(data, draw, others)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            change_message(message, draw)
        return bytes(message.SerializePartialToString())

    return spoilt


def change_message(message: Any, draw: Draw) -> None:
    """Change one field, in place."""
    places = list(_fields_of(message))
    if not places:
        return
    # one of each kind of field first: a graph is nearly all nodes
    kinds = sorted({field.full_name for _, field in places})
    wanted = draw.choice(kinds)
    holder, field = draw.choice([one for one in places if one[1].full_name == wanted])
    name = field.name
    if _is_repeated(field):
        _change_list(getattr(holder, name), field, draw)
    elif field.message_type is not None:
        holder.ClearField(name)
        if draw.random() < 0.3:
            getattr(holder, name).SetInParent()
    else:
        _set(holder, field, draw)


def _is_repeated(field: Any) -> bool:
    found = getattr(field, "is_repeated", None)
    return bool(found() if callable(found) else found if found is not None else field.label == field.LABEL_REPEATED)


def _fields_of(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if _is_repeated(field) else (value,):
                yield from _fields_of(inner)
    if draw_unset := [one for one in message.DESCRIPTOR.fields if not _is_repeated(one) and one.message_type is None]:
        yield message, draw_unset[len(message.DESCRIPTOR.fields) % len(draw_unset)]


def _change_list(values: Any, field: Any, draw: Draw) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if values:
            del values[draw.choice(sorted(values))]
        return
    kind = draw.randrange(5)
    if not len(values):
        return
    place = draw.randrange(len(values))
    if kind == 0:
        del values[place]
    elif kind == 1:
        values.extend([values[place]] * draw.choice((1, 1, 300)))
    elif kind == 2:
        del values[place:]
    elif field.message_type is not None:
        other = draw.randrange(len(values))
        first, second = type(values[place])(), type(values[place])()
        first.CopyFrom(values[place])
        second.CopyFrom(values[other])
        values[place].CopyFrom(second)
        values[other].CopyFrom(first)
    else:
        values[place] = _scalar(field, draw, list(values))


def _set(holder: Any, field: Any, draw: Draw) -> None:
    setattr(holder, field.name, _scalar(field, draw, [getattr(holder, field.name)]))


def _scalar(field: Any, draw: Draw, near: list[Any]) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return spoilt_bytes(draw.choice(near), draw)
        return draw.choice((*TEXTS, str(draw.choice(near)) + "x"))
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw.choice((0.0, -1.0, 3e38, 1e-40, float("nan"), float("inf")))
    if kind == field.CPPTYPE_BOOL:
        return not near[0]
    if kind == field.CPPTYPE_ENUM:
        return draw.choice([one.number for one in field.enum_type.values])
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    number = draw.choice((*NUMBERS, *(int(one) + draw.choice((-1, 1, 2, 7)) for one in near)))
    return max(low, min(high, number))


GLOBALS = (b"posix\nsystem\n", b"builtins\neval\n", b"builtins\nexec\n", b"os\npopen\n", b"torch\nload\n", b"collections\nOrderedDict\n",
           b"torch._utils\n_rebuild_tensor_v2\n", b"nt\nsystem\n", b"subprocess\nPopen\n", b"numpy._core.multiarray\nscalar\n", b"torch.hub\nload\n",
           b"builtins\ngetattr\n", b"pathlib\nPath\n", b"datetime\ndatetime\n", b"enum\nEnum\n", b"types\nCodeType\n", b"functools\npartial\n", b"webbrowser\nopen\n")  # fmt: skip


def spoilt_pickle(data: bytes, draw: Draw, others: Any = ()) -> bytes:
    """Opcodes of a pickle put in, among them those that call, and bytes changed."""
    kind = draw.random()
    if kind < 0.4:
        return spoilt_bytes(data, draw, others)
    piece = draw.choice(
        (
            b"c" + draw.choice(GLOBALS) + b"(X\x04\x00\x00\x00trueO" * draw.randrange(2) + b"tR",
            b"c" + draw.choice(GLOBALS) + b"X\x04\x00\x00\x00true\x85R",
            b"(" * 3000,
            b"]" * 3000,
            b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R",
            b"(i" + draw.choice(GLOBALS),
            b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"r\xff\xff\xff\x7f",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"T\xff\xff\xff\x7f",
            b"]q\x07h\x07a" * 3,
            b"}q\x08",
            b"P12\n",
            b"\x82\x01",
            b"F1e999\n",
            b"L" + b"9" * 5000 + b"L\n",
            b"N}b",
            b"0" * 50,
        )
    )
    places = [place for place, byte in enumerate(data[:20_000]) if byte in b"q}(]"] or [0]
    place = draw.choice(places)
    return data[:place] + piece + data[place + draw.choice((0, 0, 2)) :]


def spoilt_safetensors(data: bytes, draw: Draw, others: Any = ()) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.4 or length > len(data):
        return spoilt_bytes(data, draw, others)
    header = spoilt_json(data[8 : 8 + length], draw)
    told = len(header) if draw.random() < 0.9 else draw.choice((0, 1 << 20, 99_999_999, (1 << 64) - 1))
    return told.to_bytes(8, "little") + header + data[8 + length :]
