"""`make quick`: which tests are about what changed, and about a room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script_modules import script_module

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
TESTS = {
    Path("tests/test_eval.py"): "from exporter.cli.deploy import main",
    Path("tests/cli/test_export.py"): "from helpers import made",
    Path("tests/lowering/test_ranges.py"): "import exporter.lowering.ranges",
    Path("tests/test_engines.py"): "from exporter.engines import build",
}


@pytest.fixture(scope="module")
def quick() -> Any:
    return script_module("quick")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("exporter/cli/deploy.py", {"tests/test_eval.py": 2, "tests/cli/test_export.py": 3}),
        ("exporter/cli/_export.py", {"tests/cli/test_export.py": 1}),
        ("exporter/engines/build.py", {"tests/test_engines.py": 2}),
        ("exporter/lowering/ranges.py", {"tests/lowering/test_ranges.py": 1}),
        ("tests/test_eval.py", {"tests/test_eval.py": 0}),
        ("tests/helpers.py", {"tests/cli/test_export.py": 2}),
        ("README.md", {}),
    ],
)
def test_tests_are_those_of_the_name_the_imports_and_the_room(
    quick: Any, changed: str, expected: dict[str, int]
) -> None:
    found = quick.tests_of_changes([Path(changed)], TESTS)
    assert {path.as_posix(): distance for path, distance in found.items()} == expected


def test_a_room_has_the_tests_of_its_folder_or_else_those_that_import_it(quick: Any) -> None:
    assert set(quick.tests_of_room("lowering", TESTS)) == {Path("tests/lowering/test_ranges.py")}
    assert set(quick.tests_of_room("engines", TESTS)) == {Path("tests/test_engines.py")}
    assert quick.tests_of_room("kitchen", TESTS) == {}


def test_the_nearest_and_quickest_tests_are_first(quick: Any) -> None:
    chosen = {Path("tests/a.py"): 2, Path("tests/b.py"): 2, Path("tests/c.py"): 1}
    order = quick.nearest_first(chosen, {"tests/a.py": 9.0, "tests/b.py": 1.0, "tests/c.py": 60.0})
    assert [path.stem for path in order] == ["c", "b", "a"]


@pytest.mark.parametrize(("seconds", "says"), [(600, "20 passed"), (-1, "not begun: ")])
def test_when_the_time_is_up_the_rest_is_named(
    quick: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    seconds: int,
    says: str,
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    many = "import time, pytest\n@pytest.mark.parametrize('n', range(10))\ndef test_it(n): time.sleep(0.1)\n"
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(many)
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    end = quick.time.monotonic() + seconds
    assert quick.run_tests({Path("test_one.py"): 0, Path("test_two.py"): 1}, end) == 0
    out = capfd.readouterr().out
    assert says in out
    assert ("20 passed" in out) == (seconds > 0)
