"""Spoil files: bytes, lines, JSON, arrays, archives and protobuf messages, each in ways that its readers must stand.

All that is drawn comes from one `random.Random`: a case is its number.
"""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

NUMBERS = (0, -1, 1, 2, 127, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**30)
RAW = ("1e999", "-1e999", "NaN", "Infinity", "-0.0", "9" * 5000, '"\\ud800"', "[" * 3000 + "]" * 3000, "{\"a\":" * 1500 + "1" + "}" * 1500, "0.1e-400", "01", "'x'", "1.0")
"""Pieces of JSON that stand for no value that `json.dumps` would write."""
TEXTS = (
    "", " ", "\0", "../../etc/passwd", "/etc/passwd", "a\nb", "\u2028", "\x1b[2J", "\ufeff", "{}", "{0}", "%s", "nan", "inf",
    "-1", "0", "1e999", "99999999999999999999", "9" * 5000, "x" * 70_000, "ä", "🦆", "\ud7ff", "__import__('os').system('true')",
    "$(true)", "`true`", "..", ".", "CON", "a/b", "a\\b", "::warning::", "<script>", "0x10", "1_000", "\u0664", "²", "memory://x",
    "http://127.0.0.1:9/x", "file:///etc/passwd", "'", '"', "\t", "\r", "[", "{", "]" , "(" * 300, "-" * 3000 + "1",
)
VALUES: tuple[object, ...] = (None, True, False, *NUMBERS, 0.5, -0.5, 1e308, 5e-324, *TEXTS, [], {}, [[]], {"": None}, [0] * 300, [None], [""], {"a": {"b": 1}})
MARK = "\uf8ff%d\uf8ff"

Draw = Random


def spoilt_bytes(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
    """Flip, cut, splice and overwrite."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        out = _spoil_once(out, draw, others)
    return bytes(out)


def _spoil_once(out: bytearray, draw: Draw, others: Sequence[bytes]) -> bytearray:
    size = len(out)
    place = _place(draw, size)
    kind = draw.randrange(10)
    if kind == 0 or not size:
        out[place:place] = draw.randbytes(draw.choice((1, 4, 64)))
    elif kind == 1:
        out[place] ^= 1 << draw.randrange(8)
    elif kind == 2:
        out[place] = draw.choice((0, 255, 0x80, 0x7F, draw.randrange(256)))
    elif kind == 3:
        del out[place:]
    elif kind == 4:
        del out[place : place + draw.choice((1, 2, 4, 16, 256))]
    elif kind == 5:
        piece = out[place : place + draw.choice((1, 4, 16, 256))]
        out[_place(draw, size) : 0] = piece * draw.choice((1, 1, 100))
    elif kind == 6:
        number, width = draw.choice(NUMBERS), draw.choice((1, 2, 4, 8))
        whole = (number % (1 << 8 * width)).to_bytes(width, draw.choice(("little", "big")))
        out[place : place + width] = whole
    elif kind == 7:
        length = draw.choice((4, 64, 1024))
        out[place : place + length] = draw.choice((b"\0", b"\xff")) * min(length, size - place)
    elif kind == 8 and others:
        other = draw.choice(others)
        start = _place(draw, len(other))
        out[place : place + draw.choice((0, 16, 1 << 20))] = other[start : start + draw.choice((16, 256, 1 << 20))]
    else:
        out += draw.choice((b"\0", b"\n", b"\xff\xfe", out[: draw.choice((8, 256))]))
    return out


def _place(draw: Draw, size: int) -> int:
    """Headers, which are at the beginning and the end, more often than what is between."""
    if not size:
        return 0
    near = draw.random()
    if near < 0.4:
        return draw.randrange(min(size, 64))
    return size - 1 - draw.randrange(min(size, 64)) if near < 0.55 else draw.randrange(size)


def spoilt_text(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
    """Change lines and words of a text, its encoding and its ends of lines."""
    if draw.random() < 0.15:
        return spoilt_bytes(data, draw, others)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(lines)) if lines else 0
        kind = draw.randrange(7)
        if kind == 0 or not lines:
            lines.insert(place, draw.choice(TEXTS))
        elif kind == 1:
            del lines[place]
        elif kind == 2:
            lines.insert(draw.randrange(len(lines) + 1), lines[place])
        elif kind == 3:
            lines[place] = _changed_word(lines[place], draw)
        elif kind == 4:
            other = draw.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == 5:
            lines[place] += draw.choice(TEXTS)
        else:
            lines = lines[:place] if draw.random() < 0.3 else lines
    text = draw.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)
    return text.encode(draw.choice(("utf-8",) * 6 + ("utf-16", "utf-8-sig", "latin-1")), "replace")


def _changed_word(line: str, draw: Draw) -> str:
    parts = re.split(r"(\W+)", line)
    place = draw.randrange(len(parts))
    parts[place] = str(draw.choice(NUMBERS)) if draw.random() < 0.5 else draw.choice(TEXTS)
    return "".join(parts)


def spoilt_json(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
    """Change values, keys and shapes of a document, or its bytes."""
    if draw.random() < 0.15:
        return spoilt_bytes(data, draw, others)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return spoilt_text(data, draw, others)
    raws: list[str] = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = _spoil_value(value, draw, raws)
    text = json.dumps(value)
    for place, raw in enumerate(raws):
        text = text.replace(json.dumps(MARK % place), raw)
    if draw.random() < 0.05:  # a key twice, of which readers differ
        text = re.sub(r'"(\w+)": ', r'"\1": 1, "\1": ', text, count=1)
    return text.encode()


def _spoil_value(value: Any, draw: Draw, raws: list[str]) -> Any:
    places = list(_places_of(value))
    holder, key = draw.choice(places) if places else (None, None)
    if holder is None:
        return _strange(draw, raws)
    kind = draw.randrange(7)
    if kind <= 2:
        holder[key] = _strange(draw, raws)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other_holder, other_key = draw.choice(places)
        holder[key] = json.loads(json.dumps(other_holder[other_key]))
    elif kind == 5 and isinstance(holder, dict):
        holder[draw.choice(TEXTS) if draw.random() < 0.5 else f"{key}x"] = holder.pop(key)
    elif kind == 5:
        holder *= draw.choice((2, 50))
    else:
        holder[key] = draw.choice(([holder[key]], {"a": holder[key]}, _near(holder[key], draw)))
    return value


def _near(value: Any, draw: Draw) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, value * 1000, value << 40, draw.choice(NUMBERS)))
    if isinstance(value, float):
        return draw.choice((value * 1e300, -value, 0.0, value / 1e300, 5e-324))
    if isinstance(value, str):
        return draw.choice((value[:-1], value + value, value.upper(), value + draw.choice(TEXTS), draw.choice(TEXTS)))
    return type(value)()


def _strange(draw: Draw, raws: list[str]) -> object:
    if draw.random() < 0.2:
        raws.append(draw.choice(RAW))
        return MARK % (len(raws) - 1)
    value = draw.choice(VALUES)
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else value


def _places_of(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            yield one, key
            waiting.append(one[key])


def spoilt_array(data: bytes, draw: Draw, others: Sequence[bytes] = ()) -> bytes:
    """Change the header of a `.npy` file, as text, or its bytes."""
    if draw.random() < 0.5 or len(data) < 12:
        return spoilt_bytes(data, draw, others)
    end = 10 + struct.unpack_from("<H", data, 8)[0]
    header = data[10:end].decode("latin-1")
    swaps = [str(draw.choice(NUMBERS)), "None", "'O'", "'|V8'", "(1,)*9", "'<U99999999'", "'<f2'", "[('a','<i4')]", "True", "-" * 200 + "1", "(" * 90 + ")" * 90, "'<M8[ns]'", "1.0", "'<i3'", "''"]
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


def _spoil_entry(entries: list[tuple[str, bytes, int]], inner: Callable[[str], Callable[..., bytes]], draw: Draw) -> None:
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
        return draw.choice([one.number for one in field.enum_type.values] )
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    number = draw.choice((*NUMBERS, *(int(one) + draw.choice((-1, 1, 2, 7)) for one in near)))
    return max(low, min(high, number))
