"""Tell the splits of a data set (`train`, `val`, `test`) from folders of classes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from runtimes.errors import BadInput

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
MEASURE_WITH = ("val", "test", "train")
LABEL_WITH = ("train", "val", "test")


def splits_among(names: Collection[str]) -> dict[str, str]:
    """Which split each of these folders is, sorted by name; empty if they are classes.

    `train` beside folders that are no splits may be a class (a train on rails); alone, or beside another split, it is a
    split.
    """
    found = {name: SPLITS[name.casefold()] for name in sorted(names) if name.casefold() in SPLITS}
    return found if len(set(found.values())) > 1 or len(found) == len(names) else {}


def check_no_splits(
    names: Collection[str], folder: Path | str, option: str, *, prefer: tuple[str, str, str] = MEASURE_WITH
) -> None:
    """Refuse the splits of a data set where folders of classes are expected.

    Args:
        names: the subfolders of `folder` that would be taken for classes.
        prefer: which split to name as the one to give `option`, the first that is there.

    Raises:
        BadInput: they are the splits of a data set; names the folder to give.
    """
    if found := splits_among(names):
        right = min(found, key=lambda name: prefer.index(found[name]))
        raise BadInput(
            f"{option}: expected a folder for each class in {folder}, got the parts of a data set "
            f"({', '.join(found)}); give one of them: {option} {folder}/{right}"
        )
