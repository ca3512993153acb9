"""WordNet ids of a model's classes (`--synsets`), which ImageNet calls synsets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from calibration.storage import local_file, without_file_scheme
from runtimes.errors import BadInput
from runtimes.textfile import lines_from_text, text_from_file

WORDNET_ID = re.compile(r"n[0-9]{8}")


def synsets_from_file(path: Path | str, count: int) -> tuple[str, ...]:
    """Read the WordNet ids of a model's `count` classes, in the order of the classes, from a file: a path, or a URL.

    A text file has one at the start of each line, as Kaggle's `LOC_synset_mapping.txt`: `n01440764 tench, Tinca tinca`.
    A `.json` file is Keras' `imagenet_class_index.json`: `{"0": ["n01440764", "tench"], ...}`.

    Raises:
        BadInput: it cannot be read, does not hold `count` different WordNet ids, or is in the order of ImageNet's
            devkit (`map_clsloc.txt`: `n02119789 1 kit_fox`), which is not that of any model's classes.
        StorageUnavailable: the storage cannot be read.
    """
    try:
        with local_file(without_file_scheme(str(path))) as file:
            text = text_from_file(file)
        is_json = str(path).lower().endswith(".json")
        rows = (
            _rows_from_json(json.loads(text), path)
            if is_json
            else [line.split() for line in lines_from_text(text.rstrip())]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"--synsets: cannot read {path}: {error}; give a line for each class that starts with its WordNet id"
        ) from error
    synsets = tuple(row[0] if row else "" for row in rows)
    for number, synset in enumerate(synsets, start=1):
        if not WORDNET_ID.fullmatch(synset):
            raise BadInput(
                f"{path}: expected a WordNet id, as n01440764, at the start for each class, got '{synset}' in place "
                f"{number}"
            )
    if len(synsets) != count or len(set(synsets)) != count:
        raise BadInput(
            f"{path}: expected {count} different WordNet ids, one for each class of the model, got {len(set(synsets))} "
            f"in {len(synsets)}"
        )
    check_not_devkit(rows, path)
    return synsets


def check_not_devkit(rows: Sequence[Sequence[str]], path: Path | str) -> None:
    """Refuse the order of classes that ImageNet's devkit has.

    Args:
        rows: the words of each line, the first of them a WordNet id.

    Raises:
        BadInput: they are in the order of ImageNet's devkit, as in Caffe's `map_clsloc.txt`.
    """
    synsets = [row[0] for row in rows]
    if synsets != sorted(synsets) and all(row[1:2] == [str(number)] for number, row in enumerate(rows, start=1)):
        raise BadInput(
            f"{path}: expected the order of the model's classes, got that of ImageNet's devkit, which numbers them "
            "from 1; sort its lines"
        )


def _rows_from_json(value: object, path: Path | str) -> list[list[str]]:
    rows = [value.get(str(place)) for place in range(len(value))] if isinstance(value, dict) else []
    if not rows or not all(
        isinstance(row, list) and row and all(isinstance(word, str) for word in row) for row in rows
    ):
        raise BadInput(
            f'{path}: expected {{"0": ["n01440764", "tench"], ...}} with each number from 0 on, got something else'
        )
    return [[str(word) for word in row or ()] for row in rows]
