"""Spoilt files of every kind that is read: an error of ours that names the file, or success.

A case is its number: `Reader.case(number)` makes the same file each time. `FUZZ_FIRST` and `FUZZ_TIMES` in the
environment let the slow test go on elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_readers
import pytest
from fuzz_readers import Reader
from fuzz_watch import Finding, held

FIRST, TIMES = int(os.environ.get("FUZZ_FIRST", "100000")), int(os.environ.get("FUZZ_TIMES", "50"))


def _models(sample: Path) -> list[Reader]:
    import fuzz_models

    return [*fuzz_models.checkpoint_readers(), *fuzz_models.onnx_readers(sample)]


def _bundles(sample: Path) -> list[Reader]:
    import fuzz_bundles

    return [
        *fuzz_bundles.bundle_readers(sample),
        *fuzz_bundles.settings_readers(sample),
        *fuzz_bundles.engine_readers(sample),
    ]


def _addresses(sample: Path) -> list[Reader]:
    import fuzz_addresses

    return [*fuzz_addresses.server_readers(sample), *fuzz_addresses.text_readers()]


ROOMS: dict[str, Callable[[Path], list[Reader]]] = {
    "texts": lambda _: [*fuzz_readers.text_readers(), *fuzz_readers.json_readers()],
    "arrays": lambda _: fuzz_readers.array_readers(),
    "pictures": lambda _: fuzz_readers.picture_readers(),
    "bundles": _bundles,
    "models": _models,
    "addresses": _addresses,
}


@pytest.fixture(scope="module")
def sample(good: Any) -> Path:
    """A bundle with a program, golden arrays and labels."""
    folder: Path = good[1].bundle.folder
    return folder


def findings(reader: Reader, numbers: range, folder: Path) -> list[str]:
    """What these cases find, one of each kind. The number of the last case stands in a file, if it ends the process."""
    for seed in reader.seeds:  # which are right, and load what the reader loads late
        reader.read(reader.put(folder, seed))
    found: dict[str, str] = {}
    for number in numbers:
        path = reader.put(folder, reader.case(number))
        (folder / "case.txt").write_text(f"{reader.name} {number}")
        try:
            held(reader.read, path, writes=folder if reader.writes else None, named=reader.named)
        except Finding as finding:
            place = str(finding).rpartition(" at ")[2]
            found.setdefault(place, f"{reader.name}, case {number}: {finding}")
    return list(found.values())


def check(readers: list[Reader], tmp_path: Path, *, first: int = 0, times: int = 1) -> None:
    """Run every reader's cases, and tell all that they find."""
    found: list[str] = []
    for place, reader in enumerate(readers):
        folder = tmp_path / str(place)
        folder.mkdir()
        found += findings(reader, range(first, first + times * reader.cases), folder)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("room", ROOMS)
def test_readers_stand_spoilt_files(room: str, sample: Path, tmp_path: Path) -> None:
    check(ROOMS[room](sample), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_readers_stand_very_many_spoilt_files(room: str, sample: Path, tmp_path: Path) -> None:
    check(ROOMS[room](sample), tmp_path, first=FIRST, times=TIMES)


def test_there_are_two_thousand_cases_in_each_run(sample: Path) -> None:
    readers = [reader for room in ROOMS.values() for reader in room(sample)]
    assert sum(reader.cases for reader in readers) >= 2000
    assert len({reader.name for reader in readers}) == len(readers)
