"""The files of a folder of pictures, and what else lies in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from runtimes.errors import BadInput

SHOWN = 4
"""How many names or suffixes a message lists."""


def counts_by_suffix(paths: Iterable[Path]) -> str:
    """Files in words, by suffix, the most frequent first: 12 .txt, 3 .svg, 1 without a suffix."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    said = [f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return ", ".join(said[:SHOWN]) + (
        f" and {counts.total() - sum(sorted(counts.values())[-SHOWN:])} others" if len(said) > SHOWN else ""
    )


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, without hidden ones, which desktops and notebooks leave behind.

    Linked folders are followed, as torchvision and timm do: a subset of a data set is often a tree of links.

    Raises:
        BadInput: a folder cannot be read, or a link leads back to a folder that it lies in.
    """

    def fail(error: OSError) -> NoReturn:
        raise BadInput(f"--data: cannot read {error.filename}: {error.strerror}") from error

    way = {str(folder): {_identity(folder)}}  # the folders that lead to one, itself among them
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = way.pop(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in folders):
            if (own := _identity(path)) in above:
                raise BadInput(f"--data: {path} leads back to a folder that it lies in; remove that link")
            way[path] = {*above, own}
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _identity(folder: str | Path) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino
