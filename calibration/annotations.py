"""Label a folder of pictures from a file that lists their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from calibration.data import ImageSource
from calibration.storage import local_file, without_file_scheme
from runtimes.errors import BadInput
from runtimes.picture_file import IMAGE_SUFFIXES
from runtimes.textfile import lines_from_text, text_from_file

LARGEST_FILE = 512 << 20
"""In bytes. A line takes some fifty, and ImageNet has 1.3 million pictures."""
KAGGLE_HEADER = "ImageId,PredictionString"
SHOWN = 3


def with_labels(source: ImageSource, path: Path | str) -> ImageSource:
    """Label a folder's pictures with the classes that a file gives, in place of its subfolders' names.

    It is named by its path or its URL and has, in UTF-8 or in UTF-16 with its mark, one of
    - a line `PICTURE CLASS` for each picture, with a tab, a comma or spaces between (Caffe's `val.txt`, with spaces,
      has class indices);
    - Kaggle's `LOC_val_solution.csv`: the header `ImageId,PredictionString`, and for each picture its name without
      suffix and boxes that each start with a WordNet id: `ILSVRC2012_val_00048981,n03995372 85 1 499 272` (ImageNet
      Object Localization Challenge, "Data");
    - a class a line, in the sorted order of the pictures' names.
    A picture is named by its path below the folder, or by its last part, with or without suffix. A class may be an
    index, a WordNet id or a name: `calibration.classes` matches it.

    Raises:
        BadInput: the source is no folder; the file cannot be read; it names a picture that is not there, or one twice;
            a picture has no line; or there is not a line for each picture.
        StorageUnavailable: the storage cannot be read.
    """
    if source.names is None:
        raise BadInput(f"--data-labels is for a folder of pictures, and {source.name} is none; leave it out")
    lines = _lines(path)
    pairs = _kaggle_pairs(lines, path) if lines[0] == KAGGLE_HEADER else _pairs(lines, source.names, path)
    if pairs is not None:
        chosen = _by_picture(pairs, source, path)
    elif len(lines) == source.count:
        chosen = [line.strip() for line in lines]
    else:
        raise BadInput(
            f"{path}: expected a class a line for each of the {source.count} pictures of {source.name}, or lines of a "
            f"picture's name and its class, got {len(lines)} lines that start with '{lines[0]}'"
        )
    classes = tuple(sorted(set(chosen)))
    numbers = {name: number for number, name in enumerate(classes)}
    return replace(source, labels=np.array([numbers[name] for name in chosen], np.int64), classes=classes)


def _lines(path: Path | str) -> list[str]:
    try:
        with local_file(without_file_scheme(str(path))) as file:
            lines = lines_from_text(text_from_file(file, LARGEST_FILE).rstrip())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(
            f"--data-labels: cannot read {path}: {why}; give a UTF-8 text file with a line for each picture"
        ) from error
    if not lines:
        raise BadInput(f"--data-labels: {path} is empty; give a text file with a line for each picture")
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise BadInput(f"{path}: expected a label in every line, got an empty line {empty[0]}")
    return lines


def _kaggle_pairs(lines: Sequence[str], path: Path | str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(lines[1:], start=2):
        picture, _, boxes = line.partition(",")
        if not boxes.split():
            raise BadInput(f"{path}, line {number}: expected a picture, a comma and a WordNet id, got '{line}'")
        pairs.append((picture, boxes.split()[0]))
    return pairs


def _pairs(lines: Sequence[str], names: Sequence[str], path: Path | str) -> list[tuple[str, str]] | None:
    """Split each line into name and class, at the separator after the first line's name; None if they hold no names."""
    known = _places(names)
    halves = {separator: lines[0].split(separator, 1) for separator in ("\t", ",", None)}
    named = [separator for separator, parts in halves.items() if len(parts) == 2 and _key(parts[0], known)]
    if not named:  # a name that is not known is one still
        named = [
            separator
            for separator, parts in halves.items()
            if len(parts) == 2 and parts[0].lower().endswith(IMAGE_SUFFIXES)
        ]
    if not named:
        return None
    pairs = []
    for number, line in enumerate(lines, start=1):
        parts = line.split(named[0], 1)
        if len(parts) != 2 or not parts[1].strip():
            raise BadInput(f"{path}, line {number}: expected a picture's name and its class, got '{line}'")
        pairs.append((parts[0].strip(), parts[1].strip()))
    return pairs


def _by_picture(pairs: Sequence[tuple[str, str]], source: ImageSource, path: Path | str) -> list[str]:
    assert source.names is not None
    known = _places(source.names)
    found: dict[int, str] = {}
    for picture, label in pairs:
        key = _key(picture, known)
        if key is None:
            raise BadInput(
                f"{path}: '{picture}' is no picture of {source.name} (it has '{source.names[0]}'); take its line out, "
                "or add the picture"
            )
        place = known[key]
        if place is None:
            raise BadInput(
                f"{path}: '{picture}' is the name of two pictures of {source.name}; give their paths below it"
            )
        if place in found:
            raise BadInput(f"{path}: expected a line for each picture, got two for '{picture}'; take one out")
        found[place] = label
    missing = [name for place, name in enumerate(source.names) if place not in found]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:SHOWN])
        raise BadInput(
            f"{path}: expected a line for each picture of {source.name}, got none for {len(missing)} of them "
            f"({shown}); add them"
        )
    return [found[place] for place in range(source.count)]


def _places(names: Sequence[str]) -> dict[str, int | None]:
    """The place of the picture with each name; None if several have it. A full path wins over a shortened one."""
    places: dict[str, int | None] = {}
    for place, name in enumerate(names):
        path = PurePosixPath(name)
        for short in {path.with_suffix("").as_posix(), path.name, path.stem} - {name}:
            places[short] = place if short not in places else None
    return {**places, **{name: place for place, name in enumerate(names)}}


def _key(picture: str, known: dict[str, int | None]) -> str | None:
    """The known name of a picture: as the file has it, or the last part of that."""
    picture = picture.strip()
    return next((name for name in (picture, PurePosixPath(picture).name) if name in known), None)
