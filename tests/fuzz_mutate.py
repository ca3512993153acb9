"""Spoil files: bytes, lines and JSON, in ways that their readers must stand; `fuzz_formats` has other formats.

All that is drawn comes from one `random.Random`: a case is its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

NUMBERS = (
    0,
    -1,
    1,
    2,
    127,
    255,
    256,
    65535,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    -(1 << 63),
    10**30,
)
RAW = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-0.0",
    "9" * 5000,
    '"\\ud800"',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 1500 + "1" + "}" * 1500,
    "0.1e-400",
    "01",
    "'x'",
    "1.0",
)
"""Pieces of JSON that stand for no value that `json.dumps` would write."""
TEXTS = (
    "",
    " ",
    "\0",
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "\u2028",
    "\x1b[2J",
    "\ufeff",
    "{}",
    "{0}",
    "%s",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "99999999999999999999",
    "9" * 5000,
    "x" * 70_000,
    "ä",
    "🦆",
    "\ud7ff",
    "__import__('os').system('true')",
    "$(true)",
    "`true`",
    "..",
    ".",
    "CON",
    "a/b",
    "a\\b",
    "::warning::",
    "<script>",
    "0x10",
    "1_000",
    "\u0664",
    "²",
    "memory://x",
    "http://127.0.0.1:9/x",
    "file:///etc/passwd",
    "'",
    '"',
    "\t",
    "\r",
    "[",
    "{",
    "]",
    "(" * 300,
    "-" * 3000 + "1",
)
VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    *NUMBERS,
    0.5,
    -0.5,
    1e308,
    5e-324,
    *TEXTS,
    [],
    {},
    [[]],
    {"": None},
    [0] * 300,
    [None],
    [""],
    {"a": {"b": 1}},
)
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
