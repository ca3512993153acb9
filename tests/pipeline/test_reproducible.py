"""The same command writes the same bytes, in another process and under another name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "arguments",
    [["resnet20", "--fp16"], ["resnet18", "--weights", "random", "--image-size", "64", "--batch", "1:2:4"]],
    ids=["resnet20", "resnet18"],
)
def test_the_same_command_twice_gives_byte_identical_files(arguments: list[str], tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("resnet-export")), *arguments, "--quiet"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        subprocess.run(
            [*command, "--output", str(tmp_path / name / f"bundle-{name}")],
            check=True,
            capture_output=True,
            cwd=tmp_path / name,
        )
    one, two = (tmp_path / name / f"bundle-{name}" for name in ("one", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert "manifest.json" in names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
        assert str(tmp_path).encode() not in (one / name).read_bytes()
