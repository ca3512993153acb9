"""Compare two bundles by their manifests and calibration tables: the model, how it was made, what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from runtimes.bundle import Bundle

LEFT_OUT = ("files", "schema_version", "sensitivity", "mixed.curve")
"""Files are compared on their own, by name; a bundle of another schema version cannot be opened at all. Figures of each
block, and of choices that were not made, explain the others."""
TABLE = "calibration.json"
DIGEST = 16
"""How many characters of a digest are shown."""
MOST_RANGES = 10


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        what: the path of a value in the manifest (`model.classes`), or `file NAME`, or `range TENSOR`.
        old, new: the values as text; empty where a side has none.
    """

    what: str
    old: str
    new: str


def changes(old: Bundle, new: Bundle) -> tuple[Change, ...]:
    """All values that differ between two manifests, the files that differ, and how far calibrated ranges moved."""
    before, after = (dict(_flat(msgspec.to_builtins(bundle.manifest))) for bundle in (old, new))
    names = [*before, *(name for name in after if name not in before)]
    names.sort(key=lambda name: name.startswith("parity."))  # what was measured of both comes after what they are
    pairs = ((name, before.get(name, ""), after.get(name, "")) for name in names)
    values = [Change(name, one, other) for name, one, other in pairs if one != other]
    return (*values, *_changed_files(old, new), *_moved_ranges(old, new))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables, each with its path (`model.weights.kind`); a list is one leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            whole = f"{path}.{name}" if path else name
            if whole not in LEFT_OUT:
                yield from _flat(inner, whole)
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


def _changed_files(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = old.manifest.files, new.manifest.files
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one != other:
            yield Change(
                f"file {name}",
                f"sha256 {one.sha256[:DIGEST]}" if one else "",
                f"sha256 {other.sha256[:DIGEST]}" if other else "",
            )


def _moved_ranges(old: Bundle, new: Bundle) -> Iterator[Change]:
    """The calibrated ranges that moved most: thresholds by the calibrator that each bundle was made with."""
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
    """The threshold of each calibrated tensor, by its name; empty for a bundle that was not calibrated."""
    facts = bundle.manifest.calibration
    if facts is None or TABLE not in bundle.manifest.files:
        return {}
    from calibration.table import table_from_file

    return table_from_file(bundle.file(TABLE)).thresholds(facts.calibrator)
