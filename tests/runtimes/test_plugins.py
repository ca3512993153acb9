"""Folders of plug-ins: a file is a name, a missing package says how to get it, and our own mistakes stay visible."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from runtimes._plugins import load_plugin, plugin_names
from runtimes.errors import BackendUnavailable, UnknownName

FILES = {
    "__init__.py": "",
    "_helper.py": "value = 7",
    "plain.py": "from plugged_in_test._helper import value",
    "two_words.py": "value = 2",
    "homesick.py": "import package_that_is_not_there.inner",
    "mistaken.py": "import runtimes.module_that_is_not_there",
    "misspelt.py": "from runtimes.errors import NameThatIsNotThere",
    "broken.py": "raise ImportError('libcudnn.so.9: cannot open shared object file')",
    "notes.txt": "no plug-in",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "plugged_in_test"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("plugged_in_test")
    for name in [name for name in sys.modules if name.split(".")[0] == "plugged_in_test"]:
        del sys.modules[name]


def test_names_are_the_files_that_do_not_start_with_an_underscore_and_none_is_imported(package: ModuleType) -> None:
    assert package.__file__ is not None
    assert plugin_names(package.__file__) == ("broken", "homesick", "misspelt", "mistaken", "plain", "two-words")
    assert [name for name in sys.modules if name.startswith("plugged_in_test.")] == []


@pytest.mark.parametrize(("name", "value"), [("plain", 7), ("two-words", 2)])
def test_a_plug_in_is_loaded_by_the_name_of_its_file(package: ModuleType, name: str, value: int) -> None:
    module = load_plugin(package, name, kind="backend", remedy="")
    assert module.value == value


@pytest.mark.parametrize("name", ["_helper", "two_words", "Plain", "notes", "", "../plain", "runtimes"])
def test_what_is_no_plug_in_is_an_unknown_name(package: ModuleType, name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown backend '{name}'; "):
        load_plugin(package, name, kind="backend", remedy="")


def test_a_name_close_to_one_is_answered_with_it_and_any_other_with_all(package: ModuleType) -> None:
    with pytest.raises(UnknownName, match=r"unknown backend 'plian'; did you mean plain\?"):
        load_plugin(package, "plian", kind="backend", remedy="")
    with pytest.raises(UnknownName, match="unknown backend 'xyz'; choose from broken, homesick, misspelt, mistaken, plain, two-words"):
        load_plugin(package, "xyz", kind="backend", remedy="")


def test_a_missing_package_is_named_with_the_remedy(package: ModuleType) -> None:
    message = "backend 'homesick' needs the package 'package_that_is_not_there', which is not installed; pip install it"
    with pytest.raises(BackendUnavailable, match=message) as caught:
        load_plugin(package, "homesick", kind="backend", remedy="pip install it")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["mistaken", "misspelt", "broken"])
def test_our_own_mistakes_and_broken_libraries_are_never_called_missing_packages(package: ModuleType, name: str) -> None:
    with pytest.raises(ImportError):
        load_plugin(package, name, kind="backend", remedy="pip install it")
