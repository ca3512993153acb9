"""Read text files that people and tools wrote: their encoding, and where a line ends."""

from __future__ import annotations

import codecs
from pathlib import Path

from runtimes.private import read_regular

LARGEST_FILE = 4 << 20
"""In bytes. The names of ImageNet-21k's classes, twice over in a `config.json`, take 2.5 million. As Python's texts a
file takes up to fifty times its size."""


def lines_from_text(text: str) -> list[str]:
    """Split a text into lines at newlines, with or without a carriage return before them, and nowhere else.

    `str.splitlines` also splits at form feeds, U+0085, U+2028 and the like, which occur inside names; one such name
    would shift all that follow.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def text_from_file(path: Path, most_bytes: int = LARGEST_FILE) -> str:
    """A file's text: UTF-8, or UTF-16 where its byte order mark says so (Windows' PowerShell writes that).

    Raises:
        OSError: it cannot be read, is no file, or is larger than `most_bytes`.
        ValueError: it is no such text; says what is wrong.
    """
    data = read_regular(path, most_bytes)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes, as no UTF-8 text does")
    return text
