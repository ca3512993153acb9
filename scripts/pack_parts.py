"""Split files that are too large to be carried at once, as onnxruntime-gpu's wheel of 255 MB, and join them again where they arrive.

    python scripts/pack_parts.py split FILE... --output FOLDER [--most MB]     # FOLDER/000.part ..., and FOLDER/parts.json
    python scripts/pack_parts.py join FOLDER --output FOLDER

`parts.json` names every part and every file by its sha256, and travels with any of the parts. Joining checks both, and leaves no file
behind that is not whole. Needs Python alone. Exit code 1: a part is missing or was changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INDEX, MEGABYTE = "parts.json", 1_000_000
MOST = 60
"""Megabytes of a part."""


class PartsError(Exception):
    """What cannot be joined, in one line."""


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def split(files: Sequence[Path], folder: Path, most_bytes: int) -> list[str]:
    """Write `files` in parts of at most `most_bytes`; returns the parts' names. Parts of one file are of about one size."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"files": []}
    names: list[str] = []
    for file in files:
        data = file.read_bytes()
        count = max(1, -(-len(data) // most_bytes))
        size = -(-len(data) // count)
        parts = []
        for place in range(count):
            piece = data[place * size : (place + 1) * size]
            names.append(f"{len(names):03}.part")
            (folder / names[-1]).write_bytes(piece)
            parts.append({"name": names[-1], "bytes": len(piece), "sha256": sha256_of(piece)})
        index["files"].append({"name": file.name, "bytes": len(data), "sha256": sha256_of(data), "parts": parts})
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def join(folder: Path, output: Path) -> list[Path]:
    """Put the files in `folder` together in `output`; returns their paths.

    Raises:
        PartsError: there is no index, a part is missing or changed, or a name leads out of the folder.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise PartsError(f"cannot read {folder / INDEX}: {error}; carry it with the parts") from error
    output.mkdir(parents=True, exist_ok=True)
    joined = []
    for file in index["files"]:
        data = b"".join(_part(folder, part) for part in file["parts"])
        if sha256_of(data) != file["sha256"]:
            raise PartsError(f"{file['name']} is not what was split; split it again")
        path = output / _plain(file["name"])
        beside = path.with_name(f"{path.name}.joining")
        beside.write_bytes(data)
        os.replace(beside, path)
        joined.append(path)
    return joined


def _part(folder: Path, part: dict[str, Any]) -> bytes:
    path = folder / _plain(part["name"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PartsError(f"{path} is not here ({error.strerror}); carry it again") from error
    if sha256_of(data) != part["sha256"]:
        raise PartsError(
            f"{path} was changed on its way: expected {part['bytes']} bytes, got {len(data)}; carry it again"
        )
    return data


def _plain(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise PartsError(f"expected the name of a file, got {name!r}; split the files again")
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    splitting, joining = verbs.add_parser("split"), verbs.add_parser("join")
    splitting.add_argument("files", nargs="+", type=Path)
    splitting.add_argument("--most", type=float, default=MOST, help=f"Megabytes of a part.  [default: {MOST}]")
    joining.add_argument("folder", type=Path)
    for each in (splitting, joining):
        each.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "split" and given.most * MEGABYTE < 1:
        parser.error(f"expected --most above 0, got {given.most}")
    try:
        made: Sequence[object] = (
            split(given.files, given.output, int(given.most * MEGABYTE))
            if given.verb == "split"
            else join(given.folder, given.output)
        )
    except (PartsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*made, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
