"""Read class names from what training scripts leave behind: a text file, JSON, a Python dict, or the folders of an
ImageFolder tree."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibration.splits import LABEL_WITH, check_no_splits
from calibration.synsets import WORDNET_ID, check_not_devkit
from runtimes.errors import BadInput
from runtimes.textfile import lines_from_text, text_from_file

NAMES_UNDER = (
    "id2label",
    "label_names",
    "idx_to_class",
    "class_to_idx",
    "label2id",
    "class_names",
    "classes",
    "labels",
    "names",
)
"""Keys under which JSON files with other content have the names: Hugging Face's `config.json`, timm's, and others."""
DICT_OR_LIST = re.compile(r"\s*(?:\w+\s*=\s*)?([\[{].*[\]}])\s*", re.DOTALL)
"""A whole text that is a dict or a list, perhaps assigned to a name."""
INDEXED = re.compile(r"([0-9]{1,9})(?:[,;\t]|:\s)\s*(.+)")
NUMBER_FIRST = re.compile(r"([0-9]{1,9})\s+.+")
WITH_ID = re.compile(rf"({WORDNET_ID.pattern})[\s,]+(.+)")
PLACEHOLDER = re.compile(r"LABEL_\d+")
"""transformers' name for a class whose name it was not told."""
GIT_LFS = "version https://git-lfs."
FORMS = (
    'a class name a line, {"0": "daisy", ...}, {"daisy": 0, ...}, a list, '
    "Keras' imagenet_class_index.json, or Hugging Face's config.json with id2label"
)


def labels_from_path(path: Path) -> tuple[str, ...]:
    """Read class names, in the order of the model's outputs.

    A text file holds one a line, perhaps behind its number (`0,daisy`, `0: daisy`) or its WordNet id, as Caffe's
    `synset_words.txt`; empty lines at its end are none. JSON, or a Python dict or list as text, is `{"0": "daisy",
    ...}`, `{"daisy": 0, ...}`, a list, or one of them under a name of NAMES_UNDER; a name may be Keras' `["n02119789",
    "kit_fox"]`. Of a folder they are its subfolders' names, sorted, as torchvision's ImageFolder numbers them; hidden
    ones are none.

    Raises:
        BadInput: it cannot be read, or does not give each number from 0 on one name.
    """
    try:
        return _check_names(
            _labels_from_folder(path) if path.is_dir() else _labels_from_text(text_from_file(path), path), path
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"cannot read the labels in {path}: {why}; give a UTF-8 text file with {FORMS}") from error


def labels_for_classes(path: Path, classes: int) -> tuple[str, ...]:
    """Read class names as `labels_from_path` does, and check that there is one for each of the head's classes.

    Raises:
        BadInput: as `labels_from_path`, or there are more or fewer.
    """
    labels = labels_from_path(path)
    if len(labels) != classes:
        what = "subfolders" if path.is_dir() else "labels" if path.suffix.lower() == ".json" else "labels, one a line"
        raise BadInput(f"{path}: expected {classes} {what}, got {len(labels)}; the model has {classes} classes")
    return labels


def _check_names(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """Check that `labels.txt` can hold the names: each is one line of UTF-8, and not empty."""
    for place, name in enumerate(labels):
        if not name.strip() or re.search(r"[\r\n\0]", name) or name != name.encode("utf-8", "replace").decode():
            raise BadInput(
                f"{path}: expected a name of one line of UTF-8 for each number from 0 to {len(labels) - 1}, "
                f"got {name!a} for {place}"
            )
    return tuple(labels)


def _labels_from_folder(folder: Path) -> list[str]:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        raise BadInput(
            f"expected {folder} to hold a subfolder for each class, got none; give the folder that was trained on"
        )
    check_no_splits(labels, folder, "--labels", prefer=LABEL_WITH)
    return labels


def _labels_from_text(text: str, path: Path) -> list[str]:
    structured = DICT_OR_LIST.fullmatch(text)
    if structured or path.suffix.lower() == ".json":
        return _labels_from_value(_value_from_text(structured[1] if structured else text, path), path)
    if text.startswith(GIT_LFS) or path.suffix.lower() in (".yaml", ".yml"):
        got = (
            "the pointer to a file that git lfs has yet to fetch (git lfs pull)" if text.startswith(GIT_LFS) else "YAML"
        )
        raise BadInput(f"{path}: expected {FORMS}; got {got}")
    return _labels_from_lines([line.strip() for line in lines_from_text(text.rstrip())], path)


def _labels_from_lines(lines: list[str], path: Path) -> list[str]:
    for number, line in enumerate(lines, start=1):
        if not line:
            raise BadInput(
                f"{path}, line {number}: expected a class name, got an empty line; take it out, or name the class"
            )
    if len(lines) > 1 and (rows := _match_all(INDEXED, lines)):
        return _in_order([(int(number), name) for number, name in rows], path)
    if rows := _match_all(WITH_ID, lines):
        check_not_devkit([line.split() for line in lines], path)
        return [name for _, name in rows]
    numbers = [
        int(number) for number, *_ in _match_all(NUMBER_FIRST, lines)
    ]  # part of the name, where nothing sets it off
    if numbers != sorted(numbers) == list(range(len(lines))):
        raise BadInput(
            f"{path}: expected the lines in the order of the numbers that they begin with, got another; "
            "sort them, or give the folder of classes where the numbers are part of the names"
        )
    return lines


def _match_all(form: re.Pattern[str], lines: Sequence[str]) -> list[tuple[str, ...]]:
    """The pattern's groups in each line; an empty list if one of the lines does not match."""
    found = [match.groups() for match in map(form.fullmatch, lines) if match]
    return found if len(found) == len(lines) else []


def _in_order(pairs: Sequence[tuple[int, str]], path: Path) -> list[str]:
    """Sort names by their numbers.

    Numbers from 0 may stand in any order. Numbers from 1 must be in order, since some lists count the classes in an
    order of their own.
    """
    numbers = [number for number, _ in pairs]
    if sorted(numbers) == list(range(len(pairs))):
        return [name for _, name in sorted(pairs)]
    if numbers == list(range(1, len(pairs) + 1)):
        return [name for _, name in pairs]
    raise BadInput(
        f"{path}: expected lines numbered 0 to {len(pairs) - 1}, each once, got {min(numbers)} to {max(numbers)}; "
        "number them so"
    )


def _value_from_text(text: str, path: Path) -> object:
    """Parse JSON or, since scripts often print one into a file, a Python dict or list; nothing in it is run."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = str(error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in names
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadInput(
            f"cannot read the labels in {path}: it is not JSON ({reason}), nor a Python dict or list of names; "
            f"give {FORMS}"
        ) from error


def _object_without_duplicates(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict. Refuses a key that occurs twice, of which Python's reader would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{twice}' stands in it twice")
    return found


def _labels_from_value(value: object, path: Path) -> list[str]:
    if isinstance(value, dict):
        inner = (value.get(key) for key in NAMES_UNDER)
        value = next((one for one in inner if isinstance(one, (dict, list))), value)
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        raise BadInput(
            f'{path}: expected {{"0": "daisy", ...}} or {{"daisy": 0, ...}}, got {type(value).__name__}; give {FORMS}'
        )
    by_number = {str(key): name for key, name in value.items()}
    places = {str(place) for place in range(len(by_number))}
    are_numbers = all(isinstance(number, int) for number in value.values())
    if are_numbers or (
        set(by_number) != places and all(isinstance(number, str) and number.isdecimal() for number in value.values())
    ):
        by_number = {str(number): name for name, number in value.items()}
    names = [_class_name(name) for name in _by_number(by_number, len(places))]
    for place, name in enumerate(names or [None]):
        if not isinstance(name, str):
            last = max(len(names) - 1, 0)
            raise BadInput(
                f"{path}: expected a name of one line for each number from 0 to {last}, got {name!r} for {place}; "
                f"give {FORMS}"
            )
    return [str(name) for name in names]


def labels_from_id2label(value: object) -> tuple[str, ...] | None:
    """The class names in the `id2label` of Hugging Face's `config.json`, in the order of the outputs.

    None if it is no object, lacks a number, holds anything but names of one line, or only transformers' placeholders.
    """
    if not isinstance(value, dict) or not value:
        return None
    names = _by_number(value, len(value))
    if not all(isinstance(name, str) and len(name.splitlines()) == 1 for name in names):
        return None
    labels = tuple(str(name) for name in names)
    return None if all(PLACEHOLDER.fullmatch(label) for label in labels) else labels


def labels_from_metadata(text: str) -> tuple[str, ...] | None:
    """The class names in an ONNX file's metadata: JSON or a Python dict or list, or names between commas or on lines.

    None where they are not names of one line, one for each number from 0 on.
    """
    where = Path("metadata")
    structured = DICT_OR_LIST.fullmatch(text)
    try:
        if structured:
            return _check_names(_labels_from_value(_value_from_text(structured[1], where), where), where)
        lines = [line.strip() for line in text.strip().splitlines()]
        return _check_names(lines if len(lines) > 1 else [name.strip() for name in text.split(",")], where)
    except (BadInput, ValueError):
        return None


def _by_number(names: Mapping[str, object], count: int) -> list[object]:
    """The values under "0" to `count` - 1; None for a number that is missing."""
    return [names.get(str(place)) for place in range(count)]


def _class_name(value: object) -> object:
    """The name in Keras' `["n02119789", "kit_fox"]`; any other value as it is."""
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], str)
        and WORDNET_ID.fullmatch(value[0])
    ):
        return value[1]
    return value
