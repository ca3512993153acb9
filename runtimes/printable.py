"""Make names and labels safe to print, as a file's name may hold anything but a slash; and write counts."""

from __future__ import annotations

import os
from contextlib import suppress


def printable(text: str) -> str:
    """The text in one line, with everything unprintable escaped: line breaks, terminal commands, bytes that are no
    UTF-8."""
    text = as_text(text)
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    )


def count_text(count: int, noun: str = "image") -> str:
    """`1 image`, `2000 images`, `12,000 images`."""
    return f"{count if count < 10_000 else f'{count:,}'} {noun}{'' if count == 1 else 's'}"


def as_text(name: str) -> str:
    """A file's name without the surrogates that stand for bytes that are no UTF-8 (PEP 383): such a byte reads
    \\xe9."""
    with suppress(UnicodeEncodeError):  # a surrogate that stands for none
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name


def is_utf8(path: os.PathLike[str]) -> bool:
    """Whether a path is UTF-8: Python stands in for other bytes by surrogates, which libraries cannot open."""
    return not any("\ud800" <= letter <= "\udfff" for letter in os.fspath(path))
