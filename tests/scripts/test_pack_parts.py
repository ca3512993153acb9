"""Files that are carried in parts arrive whole, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pack_parts.py"


def packed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(name="parts")
def parts_fixture(tmp_path: Path) -> Path:
    """Three bytes more than two parts, and an empty file."""
    (tmp_path / "large.whl").write_bytes(bytes(range(203)))
    (tmp_path / "empty.whl").write_bytes(b"")
    done = packed(
        "split", tmp_path / "large.whl", tmp_path / "empty.whl", "--most", 1e-4, "--output", tmp_path / "parts"
    )
    assert done.stdout.splitlines() == ["000.part", "001.part", "002.part", "003.part"], done.stderr
    return tmp_path / "parts"


def test_joined_files_are_those_that_were_split(parts: Path, tmp_path: Path) -> None:
    assert all(part.stat().st_size <= 100 for part in parts.glob("*.part"))
    done = packed("join", parts, "--output", tmp_path / "joined")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "joined" / "large.whl").read_bytes() == bytes(range(203))
    assert (tmp_path / "joined" / "empty.whl").read_bytes() == b""


def test_a_part_that_is_missing_is_named(parts: Path, tmp_path: Path) -> None:
    (parts / "001.part").unlink()
    done = packed("join", parts, "--output", tmp_path / "joined")
    assert done.returncode == 1
    assert done.stderr == f"error: {parts / '001.part'} is not here (No such file or directory); carry it again\n"
    assert list((tmp_path / "joined").iterdir()) == []


def test_a_part_that_was_changed_is_named(parts: Path, tmp_path: Path) -> None:
    (parts / "002.part").write_bytes(b"short")
    done = packed("join", parts, "--output", tmp_path / "joined")
    assert done.returncode == 1
    assert "002.part was changed on its way: expected 67 bytes, got 5; carry it again" in done.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, parts: Path, tmp_path: Path) -> None:
    index = json.loads((parts / "parts.json").read_text())
    index["files"][0]["name"] = name
    (parts / "parts.json").write_text(json.dumps(index))
    done = packed("join", parts, "--output", tmp_path / "joined")
    assert done.returncode == 1
    assert f"expected the name of a file, got '{name}'" in done.stderr


def test_parts_without_an_index_are_refused(tmp_path: Path) -> None:
    done = packed("join", tmp_path, "--output", tmp_path / "joined")
    assert done.returncode == 1
    assert "carry it with the parts" in done.stderr


def test_parts_of_no_size_are_asked_for_wrongly(tmp_path: Path) -> None:
    done = packed("split", SCRIPT, "--most", 0, "--output", tmp_path)
    assert done.returncode == 2
    assert "expected --most above 0, got 0.0" in done.stderr
