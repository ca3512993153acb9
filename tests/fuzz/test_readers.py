"""Spoilt files of every kind that is read: an error of ours that names the file, or success."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz_readers import Reader, array_readers, json_readers, picture_readers, text_readers
from fuzz_watch import Finding, held

FEW, MANY = 20, int(os.environ.get("FUZZ_CASES", "1000"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
READERS = [*text_readers(), *json_readers(), *array_readers(), *picture_readers()]


def check(reader: Reader, numbers: range, folder: Path) -> None:
    """Run these cases; one finding of each kind is told."""
    found: dict[str, str] = {}
    for seed in reader.seeds:  # which are right, and load what the reader loads late
        reader.read(reader.put(folder, seed))
    for number in numbers:
        data = reader.case(number)
        path = reader.put(folder, data)
        (folder / "case").write_text(str(number))
        try:
            held(reader.read, path, writes=folder if reader.writes else None, named=reader.named)
        except Finding as finding:
            said = str(finding)
            key = said.rpartition(" at ")[2] or said[:60]
            if key not in found:
                (folder / f"finding-{number}").write_bytes(data)
            found.setdefault(key, f"case {number}: {said}")
    if found:
        pytest.fail(f"{len(found)} kinds:\n" + "\n".join(found.values()), pytrace=False)


@pytest.mark.parametrize("reader", READERS, ids=lambda one: one.name.replace(" ", "-"))
def test_a_reader_stands_spoilt_files(reader: Reader, tmp_path: Path) -> None:
    check(reader, range(FEW), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda one: one.name.replace(" ", "-"))
def test_a_reader_stands_many_spoilt_files(reader: Reader, tmp_path: Path) -> None:
    check(reader, range(FIRST, FIRST + MANY), tmp_path)
