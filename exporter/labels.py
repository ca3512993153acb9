"""Class names from what training scripts leave behind: a text file, `class_indices.json`, or the folders of an ImageFolder tree."""

from __future__ import annotations

import json
from pathlib import Path

from runtimes.errors import BadInput


def labels_from_path(path: Path) -> tuple[str, ...]:
    """Class names in the order of the model's outputs.

    A text file holds one a line. A `.json` file holds `{"0": "daisy", ...}`, `{"daisy": 0, ...}` or a list. Of a folder they are its
    subfolders' names, sorted, as torchvision's ImageFolder numbers them; hidden ones are none.

    Raises:
        BadInput: it cannot be read, or does not give each number from 0 on one name.
    """
    if path.is_dir():
        labels = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
        if not labels:
            raise BadInput(f"expected {path} to hold a subfolder for each class, got none; give the folder that was trained on")
        return labels
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = _labels_from_json(json.loads(text), path) if path.suffix == ".json" else tuple(text.splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the labels in {path}: {error}; give a UTF-8 text file with a class name a line") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"cannot read the labels in {path}: it is not JSON ({error})") from error
    return labels


def checked_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The class names in `path`, one for each of the head's classes.

    Raises:
        BadInput: as `labels_from_path`, or there are more or fewer.
    """
    labels = labels_from_path(path)
    if len(labels) != classes:
        what = "subfolders" if path.is_dir() else "labels" if path.suffix == ".json" else "labels, one a line"
        raise BadInput(f"{path}: expected {classes} {what}, got {len(labels)}; the model has {classes} classes")
    return labels


def _labels_from_json(value: object, path: Path) -> tuple[str, ...]:
    if isinstance(value, list):
        value = {str(place): name for place, name in enumerate(value)}
    if not isinstance(value, dict):
        raise BadInput(f'{path}: expected {{"0": "daisy", ...}} or {{"daisy": 0, ...}}, got {type(value).__name__}')
    count = len(value)
    if all(isinstance(number, int) for number in value.values()):
        value = {str(number): name for name, number in value.items()}
    names = [value.get(str(place)) for place in range(count)]
    for place, name in enumerate(names or [None]):
        if not isinstance(name, str) or len(name.splitlines()) != 1:
            last = max(len(names) - 1, 0)
            raise BadInput(f"{path}: expected a name of one line for each number from 0 to {last}, got {name!r} for {place}")
    return tuple(str(name) for name in names)
