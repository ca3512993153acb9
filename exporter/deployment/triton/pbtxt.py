"""Protocol buffers' text format, as far as a model's `config.pbtxt` needs it, without their package
(protobuf.dev/reference/protobuf/textformat-spec)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

STEP = "  "
Value: TypeAlias = "int | str | list[int] | tuple[Field, ...]"
"""A tuple is a message."""
Field: TypeAlias = "tuple[str, Value]"
"""A repeated message stands in the message that holds it once for each of its values."""


class Symbol(str):
    """The name of an enum's value, or true or false: unlike any other text, it is written without quotes."""

    __slots__ = ()


TRUE = Symbol("true")


def text_from_fields(fields: Iterable[Field], indent: str = "") -> str:
    """A message's text: its fields in order, with a final newline."""
    return "".join(_text(name, value, indent) for name, value in fields)


def _text(name: str, value: Value, indent: str) -> str:
    if not isinstance(value, tuple):
        return f"{indent}{name}: {_scalar(value)}\n"
    if not value:
        return f"{indent}{name} {{ }}\n"
    return f"{indent}{name} {{\n{text_from_fields(value, indent + STEP)}{indent}}}\n"


def _scalar(value: int | str | list[int]) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(map(str, value))} ]"
    if isinstance(value, int | Symbol):
        return str(value)
    marked = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one >= " " and one != "\x7f" else f"\\{ord(one):03o}" for one in marked) + '"'
