"""Check the types of a plan's fields: in Python, unlike on the command line, nothing has parsed them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from runtimes.errors import PlanError


def check_kinds(plan: object) -> None:
    """Check the fields of a frozen dataclass against their annotations; a str becomes a Path, or a path a str, as
    annotated.

    Raises:
        PlanError: a field is of another type (named).
    """
    for name, kind in get_type_hints(type(plan)).items():
        value = getattr(plan, name)
        takes = get_args(kind) or (kind,)
        if isinstance(value, str) and Path in takes:
            object.__setattr__(plan, name, Path(value))
        elif isinstance(value, os.PathLike) and str in takes:
            object.__setattr__(plan, name, os.fspath(value))
        elif not _is_a(value, kind):
            raise PlanError(
                f"expected {name} as {getattr(kind, '__name__', kind)}, got {str(value)[:80]!r}; see "
                f"{type(plan).__name__}'s attributes"
            )


def _is_a(value: object, kind: Any) -> bool:
    parts, origin = get_args(kind), get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(parts) and all(map(_is_a, value, parts))
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_is_a(one, parts[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _is_a(key, parts[0]) and _is_a(one, parts[1]) for key, one in value.items()
        )
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
