"""Names and labels as they can be shown: a file's name may hold anything but a slash."""

from __future__ import annotations

from contextlib import suppress


def printable(text: str) -> str:
    """The text in one line, with what is no letter, sign or space escaped: line breaks, a terminal's commands, bytes of
    a name that are no UTF-8."""
    text = as_text(text)
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    )


def as_text(name: str) -> str:
    """A name as Python has it from the system, without the surrogates that stand for its bytes (PEP 383): those that
    are no UTF-8 read \\xe9."""
    with suppress(UnicodeEncodeError):  # a surrogate that stands for none
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name
