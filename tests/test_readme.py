"""What the README shows is true: its commands run, its Python runs, its paths and links are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str = "") -> list[str]:
    """Fenced blocks of one language."""
    return [block for found, block in re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if found == language]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's commands expect: the bundle that `make run` writes, a photo, a checkpoint's labels."""
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run(
        [BIN / "resnet-export", "resnet20", "--fp16", "--quiet", "--output", "build/resnet20-fp16"], cwd=folder, check=True, capture_output=True
    )
    Image.new("RGB", (60, 40), (90, 120, 30)).save(folder / "photo.jpg")
    (folder / "names.txt").write_text("a\nb\n")
    code = "import torch, torchvision; torch.save(torchvision.models.resnet50(num_classes=2).state_dict(), 'model.pth')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


def commands() -> list[str]:
    """The `resnet-...` lines of the README that need no network, without their comments."""
    lines = [line.split("#")[0].strip() for block in blocks() for line in block.splitlines() if re.match(r"resnet-(export|deploy) ", line)]
    # ResNet-50's default weights are downloaded; BUNDLE stands in what needs a GPU.
    return [line for line in lines if ("--weights" in line or " resnet50 " not in line) and "BUNDLE" not in line]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_runs(line: str, place: Path) -> None:
    name, *arguments = shlex.split(line)
    done = subprocess.run([BIN / name, *arguments], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_has_the_commands_this_test_is_about() -> None:
    assert len(commands()) >= 5


def test_the_python_of_the_readme_runs(place: Path) -> None:
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ankle boot" in done.stdout


def test_every_file_of_the_code_map_is_there() -> None:
    (code_map,) = [block for block in blocks() if "\n  base.py" in block]
    folder = ROOT
    for line in code_map.splitlines():
        if not line.startswith(" "):
            folder = ROOT / line.split()[0]
            assert folder.is_dir(), line
        for name in re.findall(r"\b\w+\.py\b|\b\w+/(?=\s)", line):
            assert list(folder.parent.rglob(name.rstrip("/"))), name


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
    assert "TODO" not in README


def test_links_to_files_work() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)|`((?:calibration|exporter|runtimes|scripts|docs|tests)/[\w./-]+\.\w+)`", README):
        name = target[0] or target[1]
        assert (ROOT / name).exists(), name


def test_make_run_is_what_the_readme_shows() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = re.findall(r"^\$ (resnet-export .*)$", README, re.MULTILINE)
    assert len(shown) == 2
    assert all(f"$(BIN)/{line}" in makefile for line in shown)
