"""The files of a folder of pictures, and what else lies in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NoReturn

from calibration.storage import is_url, names_below_url
from runtimes.errors import BadInput

SHOWN = 4
"""How many names or suffixes a message lists."""


def suffix_of(name: str) -> str:
    """A file's suffix in lower case, with its dot; empty if it has none."""
    return os.path.splitext(name)[1].lower()


def counts_by_suffix(names: Iterable[str]) -> str:
    """Files in words, by suffix, the most frequent first: 12 .txt, 3 .svg, 1 without a suffix."""
    counts = Counter(suffix_of(name) or "without a suffix" for name in names)
    said = [f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return ", ".join(said[:SHOWN]) + (
        f" and {counts.total() - sum(sorted(counts.values())[-SHOWN:])} others" if len(said) > SHOWN else ""
    )


def files_below(folder: str) -> list[str]:
    """The paths of the files below a folder or a URL, with slashes, in an order that is the same everywhere.

    Without hidden ones, which desktops and notebooks leave behind, and those in hidden folders.

    Raises:
        BadInput: a folder cannot be read, or a link leads back to a folder that it lies in.
        StorageUnavailable: the storage cannot be read.
    """
    names = names_below_url(folder) if is_url(folder) else _names_below(folder)
    shown = (name for name in names if not name.startswith(".") and "/." not in name)
    return sorted(shown, key=lambda name: name.split("/"))


def folders_in(folder: str, names: Iterable[str]) -> set[str]:
    """The folders in a folder, without hidden ones; on storage, which knows of files only, those of `names`."""
    if is_url(folder):
        return {name.split("/", 1)[0] for name in names if "/" in name}
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


def _names_below(folder: str) -> Iterator[str]:
    """Linked folders are followed, as torchvision and timm do: a subset of a data set is often a tree of links."""

    def fail(error: OSError) -> NoReturn:
        raise BadInput(f"--data: cannot read {error.filename}: {error.strerror}") from error

    way = {folder: {_identity(folder)}}  # the folders that lead to one, itself among them
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = way.pop(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in folders):
            if (own := _identity(path)) in above:
                raise BadInput(f"--data: {path} leads back to a folder that it lies in; remove that link")
            way[path] = {*above, own}
        below = os.path.relpath(parent, folder)
        yield from (name if below == os.curdir else f"{below}/{name}" for name in names)


def _identity(folder: str) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino
