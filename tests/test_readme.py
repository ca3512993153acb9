"""README and docs/ are true: commands run, or click takes them; Python runs; paths, links and rooms are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from exporter.cli import deploy, export

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# docs/ci.md is held to the truth by tests/test_action.py, docs/extending.md by tests/test_extending.py, too.
PAGES = {
    "README.md": README,
    **{f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))},
}
BIN = Path(sys.executable).parent
COMMANDS = {"resnet-export": export.command, "resnet-deploy": deploy.command}
WORDS, COLUMNS = 900, 120
STANDING_FOR_OTHERS = re.compile(r"[A-Z]{4,}|models/|images/|my_package|resnet50-\w+|\.engine|LOC_|--resume")
"""In a command: what stands for something of the reader's, which is not here; such a command is parsed alone."""


def blocks(language: str = "", page: str = README) -> list[str]:
    """Fenced blocks of one language."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands expect: the bundle that `make run` writes, a photo, a checkpoint's labels."""
    folder = tmp_path_factory.mktemp("readme")
    command = [str(BIN / "resnet-export"), "resnet20", "--fp16", "--quiet", "--output", "build/resnet20-fp16"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    Image.new("RGB", (60, 40), (90, 120, 30)).save(folder / "photo.jpg")
    (folder / "names.txt").write_text("a\nb\n")
    code = "import torch, torchvision; torch.save(torchvision.models.resnet50(num_classes=2).state_dict(), 'model.pth')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


def shown() -> Iterator[str]:
    """The `resnet-...` lines of every page, without comments, prompts and the folder they are installed in."""
    for page in PAGES.values():
        for line in "".join(blocks(page=page)).replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:\S+/bin/)?(resnet-(?:export|deploy) .*)", line.strip())
            if match:
                yield re.sub(r"\s+#.*| +$", "", match[1])


def commands() -> list[str]:
    """Those that need no network and nothing of the reader's, each once."""
    # ResNet-50's default weights are downloaded. --force: what `make run` runs.
    lines = [line for line in shown() if "--weights" in line or " resnet50 " not in line]
    return list(dict.fromkeys(one for one in lines if "--force" not in one and not STANDING_FOR_OTHERS.search(one)))


def takes_long(line: str) -> bool:
    """Is it an export that README does not show? What its options do is tested where they belong."""
    return line.startswith("resnet-export") and "--dry-run" not in line and line not in README


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow if takes_long(line) else ()) for line in commands()]
)
def test_a_command_of_the_readme_runs(line: str, place: Path) -> None:
    name, *arguments = shlex.split(line)
    done = subprocess.run([BIN / name, *arguments], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", sorted(one for one in set(shown()) if one not in commands() or takes_long(one)))
def test_a_command_that_is_not_run_here_is_taken(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(line.replace("BUNDLE...", "BUNDLE"))
    parse(COMMANDS[name], name, arguments)


def parse(command: click.Command, name: str, arguments: list[str]) -> None:
    """Let click read a command line; nothing is run. Raises click's UsageError where it would not be taken."""
    if isinstance(command, click.Group):
        inner = command.get_command(click.Context(command), arguments[0])
        assert inner is not None, arguments[0]
        parse(inner, arguments[0], arguments[1:])
    else:
        command.make_context(name, arguments)


def test_the_pages_have_the_commands_this_test_is_about() -> None:
    assert len(commands()) >= 15
    assert len(set(shown()) - set(commands())) >= 10


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(README.split()) <= WORDS
    assert [line for line in README.splitlines() if len(line) > COLUMNS] == []
    assert [len(list(filter(None, block.splitlines()))) for block in blocks("python")] == [6]


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md"])
def test_the_python_of_a_page_runs(name: str, place: Path) -> None:
    (block,) = blocks("python", PAGES[name])
    done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ankle boot" in done.stdout


def code_map() -> dict[str, str]:
    """Folder -> what the code map says of it."""
    (found,) = [block for block in blocks() if "\n  pipeline/" in block]
    rooms, above = {}, ""
    for line in found.splitlines():
        name, _, text = line.strip().partition(" ")
        above = above if line.startswith(" ") else name
        rooms[f"{above}{name}" if line.startswith(" ") else name] = text.strip()
    return rooms


def test_every_room_of_the_code_map_is_there_and_every_room_that_is_there_is_in_it() -> None:
    rooms = code_map()
    assert all(rooms.values())
    assert [name for name in rooms if not (ROOT / name).is_dir()] == []
    for house in ("exporter", "runtimes"):
        there = {f"{house}/{path.parent.name}/" for path in (ROOT / house).glob("*/__init__.py")}
        assert there <= set(rooms), there - set(rooms)


@pytest.mark.parametrize("name", PAGES)
def test_no_placeholder_is_left(name: str) -> None:
    assert "@@" not in PAGES[name]
    assert "TODO" not in PAGES[name]


@pytest.mark.parametrize("name", PAGES)
def test_links_to_files_work(name: str) -> None:
    page, folder = PAGES[name], (ROOT / name).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)|(?:srcset|src)=\"(?!https?:)([^\"]+)\"", page):
        assert (folder / (target[0] or target[1])).exists(), target
    paths = re.findall(r"`((?:calibration|exporter|runtimes|scripts|docs|tests)/[\w./-]+\.\w+)`", page)
    assert [path for path in paths if not (ROOT / path).exists() and name != "docs/extending.md"] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_to_headings_work(name: str) -> None:
    for file, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", PAGES[name]):
        target = os.path.normpath(Path(name).parent / file) if file else name
        headings = re.findall(r"^#+ (.*)$", PAGES[target], re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, (target, heading)


def test_make_run_is_what_getting_started_shows() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(r"^\$ (resnet-export .*)$", PAGES["docs/getting-started.md"], re.MULTILINE)
    assert len(lines) == 2
    assert all(f"$(BIN)/{line}" in makefile for line in lines)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the packages of the site are not here; make docs installs them")
    command = [str(BIN / "mkdocs"), "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/commands.html").read_text()
    assert all(name in page for name in ("resnet-export", "resnet-deploy check", "--weights", "--bisect"))
    assert "open_runtime" in (tmp_path / "site/api.html").read_text()


def test_the_rooms_are_drawn_as_the_code_map_has_them() -> None:
    drawn = (ROOT / "docs/images/rooms.svg").read_text()
    rooms = {Path(name).name for name in code_map() if Path(name).parts[0] in ("exporter", "calibration", "runtimes")}
    assert rooms == set(re.findall(r'class="(?:room-)?name">(\w+)<', drawn)), "python scripts/make_pictures.py --rooms"
