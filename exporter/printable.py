"""Names and labels as they can be shown: a file's name may hold anything but a slash."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what is no letter, sign or space escaped: line breaks, a terminal's commands, bytes of a name that are no UTF-8."""
    return text if text.isprintable() else "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
