"""What differs between two bundles: the model, how it was made, and what was measured of it. Reads manifests and calibration tables alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from runtimes.bundle import Bundle

LEFT_OUT = ("files", "schema_version")
"""Files are compared by name; a version that could not be read does not come this far."""
TABLE = "calibration.json"
DIGEST = 16
"""Characters of a digest that are shown."""
MOST_RANGES = 10


@dataclass(frozen=True)
class Change:
    """One thing that differs: its path in the manifest (or the file), and both values as text; empty where one side has none."""

    what: str
    old: str
    new: str


def changes(old: Bundle, new: Bundle) -> tuple[Change, ...]:
    """Everything that two bundles' manifests say differently, the files that differ, and how calibrated ranges moved."""
    before, after = (dict(_flat(msgspec.to_builtins(bundle.manifest))) for bundle in (old, new))
    names = [*before, *(name for name in after if name not in before)]
    names.sort(key=lambda name: name.startswith("parity."))  # what was measured of both comes after what they are
    told = [
        Change(name, before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name, "") != after.get(name, "")
    ]
    return (*told, *_files(old, new), *_ranges(old, new))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested tables by their path; a list is one leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if path or name not in LEFT_OUT:
                yield from _flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(_text(inner) for inner in value.values())
    text = "" if value is None else str(value)
    return text[:DIGEST] if re.fullmatch("[0-9a-f]{64}", text) else text


def _files(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = old.manifest.files, new.manifest.files
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one != other:
            yield Change(
                f"file {name}",
                f"sha256 {one.sha256[:DIGEST]}" if one else "",
                f"sha256 {other.sha256[:DIGEST]}" if other else "",
            )


def _ranges(old: Bundle, new: Bundle) -> Iterator[Change]:
    """Of calibrated ranges, the largest moves: each tensor's threshold by the calibrator that the bundle was made with."""
    before, after = _thresholds(old), _thresholds(new)
    moved = {
        name: after[name] / before[name]
        for name in before
        if name in after and before[name] > 0 and after[name] != before[name]
    }
    for name in sorted(moved, key=lambda name: -abs(moved[name] - 1))[:MOST_RANGES]:
        yield Change(f"range {name}", f"{before[name]:.6g}", f"{after[name]:.6g} ({moved[name] - 1:+.1%})")
    if len(moved) > MOST_RANGES:
        yield Change("ranges that moved", "", f"{len(moved)} of {len(before)}; the largest moves are above")


def _thresholds(bundle: Bundle) -> dict[str, float]:
    facts = bundle.manifest.calibration
    if facts is None or TABLE not in bundle.manifest.files:
        return {}
    from calibration.table import table_from_file

    return table_from_file(bundle.file(TABLE)).thresholds(facts.calibrator)
