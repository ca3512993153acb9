"""Lint, and the tests of what changed or of one room, within three minutes: `make quick`, `make quick ROOM=lowering`.

What changed is the difference to `origin/main` (or `main`), with what is not committed. Its tests are those of the same
name, those that import a changed module, and those in the room's folder; within each kind the quickest run first, by
what they took the last time. When the time is up, the rest is left to `make test`, and named.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("exporter", "runtimes", "calibration")
SECONDS = 170
"""For all of it: what runs when they are over takes some more."""
TIMES = "quick/seconds"
"""Where pytest's cache keeps what each file took."""
LINT = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))


def module_of(path: Path) -> str:
    """The name that a file is imported by: `exporter.cli.export`; a file of tests/ is imported by its name alone."""
    parts = path.with_suffix("").parts
    if parts[0] == "tests":
        return parts[-1]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> set[str]:
    """Names of the modules that a file imports, anywhere in it; of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def room_of(path: Path) -> str | None:
    """The folder of tests/ that a module's tests are in: `cli` for exporter/cli/export.py, `runtimes` for runtimes/."""
    if path.parts[0] == "exporter" and len(path.parts) > 2:
        return path.parts[1]
    return path.parts[0] if path.parts[0] in PACKAGES else None


def tests_of_changes(changed: Iterable[Path], tests: Mapping[Path, str]) -> dict[Path, int]:
    """Which of `tests` (path to source) to run for the changed files, and how near each is to them; 0 is nearest."""
    found: dict[Path, int] = {}

    def add(test: Path, distance: int) -> None:
        found[test] = min(distance, found.get(test, distance))

    changed = [path for path in changed if path.suffix == ".py"]
    modules = {module_of(path) for path in changed}
    names = {f"test_{path.stem.lstrip('_')}" for path in changed}
    rooms = {room for path in changed if (room := room_of(path)) is not None}
    for test, source in tests.items():
        if test in changed:
            add(test, 0)
        if test.stem in names:
            add(test, 1)
        if imports_of(source) & modules:
            add(test, 2)
        if test.parts[1] in rooms:
            add(test, 3)
    return found


def tests_of_room(room: str, tests: Mapping[Path, str]) -> dict[Path, int]:
    """The tests in the folder tests/`room`; without one, those that import a module of the room."""
    inside = {test: 0 for test in tests if test.parts[1] == room}
    package = room if room in PACKAGES else f"exporter.{room}"
    return inside or {
        test: 0
        for test, source in tests.items()
        if any(f"{name}.".startswith(f"{package}.") for name in imports_of(source))
    }


def changed_files() -> list[Path]:
    """What differs from the last commit that is on origin/main or main, and what git does not know yet."""
    for branch in ("origin/main", "main", "HEAD"):
        base = subprocess.run(
            ["git", "merge-base", branch, "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if base.returncode == 0:
            break
    else:
        raise click.ClickException("git knows neither origin/main nor main here; give a ROOM")
    names = _lines("git", "diff", "--name-only", base.stdout.strip())
    names += _lines("git", "ls-files", "--others", "--exclude-standard")
    return [Path(name) for name in names]


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


class Deadline:
    """A pytest plugin that notes how long each file takes, and stops the run when the time is up."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.seconds: dict[str, float] = {}
        self.is_over = False
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.split("::")[0]
        self.seconds[file] = self.seconds.get(file, 0) + report.duration
        self.failed |= report.failed
        if time.monotonic() > self.end:
            self.is_over = True
            pytest.exit("the time is up")  # ends xdist's workers, too: a softer stop lets each finish its file

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        cache = session.config.cache
        if cache is not None:
            rounded = {file: round(seconds, 1) for file, seconds in self.seconds.items()}
            cache.set(TIMES, {**cache.get(TIMES, {}), **rounded})


def nearest_first(chosen: Mapping[Path, int], seconds: Mapping[str, float]) -> list[Path]:
    """The tests in the order to run them: the nearest first, and of those the quickest; of unknown ones, any."""

    def key(test: Path) -> tuple[int, float, str]:
        return chosen[test], seconds.get(test.as_posix(), 0), test.as_posix()

    return sorted(chosen, key=key)


def run_tests(chosen: Mapping[Path, int], end: float) -> int:
    """Run them until `end` (of `time.monotonic`); pytest's exit code, 0 where nothing failed before the time was up."""
    known = ROOT / ".pytest_cache" / "v" / TIMES
    files = nearest_first(chosen, json.loads(known.read_text()) if known.exists() else {})
    click.echo(f"{len(files)} test files: {' '.join(map(str, files))}")
    deadline = Deadline(end)
    options = ["-q", "-m", "not slow", "--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    os.chdir(ROOT)
    code = pytest.main([*options, *map(str, files)], plugins=[deadline])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return 0
    if deadline.is_over:
        left = [str(file) for file in files if file.as_posix() not in deadline.seconds]
        click.echo(f"the time is up; not begun: {' '.join(left) or 'none'}; `make test` runs all")
        return int(deadline.failed)
    return int(code)


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("room", required=False)
def main(room: str | None) -> None:
    end = time.monotonic() + SECONDS
    tests = {path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    chosen = tests_of_room(room, tests) if room else tests_of_changes(changed_files(), tests)
    if room and not chosen:
        raise click.ClickException(
            f"no test is about a room '{room}'; give a folder of exporter/, or one of {PACKAGES}"
        )
    tools = Path(sys.executable).parent
    lint = [subprocess.run([str(tools / tool), *options], cwd=ROOT, check=False).returncode for tool, *options in LINT]
    if not chosen:
        click.echo("no test is about what changed")
    tested = run_tests(chosen, end) if chosen else 0
    sys.exit(tested or int(any(lint)))


if __name__ == "__main__":
    main()
