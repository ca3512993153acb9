"""Plug-ins: each file keeps its folder's protocol, a missing package says how to get it, and our own mistakes show."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from calibration.observers import Observer, observers
from runtimes._plugins import load_plugin, plugin_names
from runtimes.errors import BackendUnavailable, UnknownName

if TYPE_CHECKING:  # for mypy, which holds the types of these files against the protocols, too
    from exporter.lowering.precisions import Precision, bf16, fp16, fp32, int8
    from exporter.models.sources import ModelSource, cifar, custom, timm, torchvision

    PRECISIONS: tuple[Precision, ...] = (bf16, fp16, fp32, int8)
    SOURCES: tuple[ModelSource, ...] = (cifar, custom, timm, torchvision)

FOLDERS = (
    "exporter.engines.builders",
    "exporter.lowering.precisions",
    "exporter.lowering.qdq.targets",
    "exporter.models.sources",
)
"""Their files satisfy the `Protocol` of their `__init__.py`: observers by functions, backends by their `Runtime`."""

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
    with pytest.raises(
        UnknownName, match="unknown backend 'xyz'; choose from broken, homesick, misspelt, mistaken, plain, two-words"
    ):
        load_plugin(package, "xyz", kind="backend", remedy="")


def test_a_missing_package_is_named_with_the_remedy(package: ModuleType) -> None:
    message = "backend 'homesick' needs the package 'package_that_is_not_there', which is not installed; pip install it"
    with pytest.raises(BackendUnavailable, match=message) as caught:
        load_plugin(package, "homesick", kind="backend", remedy="pip install it")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["mistaken", "misspelt", "broken"])
def test_our_own_mistakes_and_broken_libraries_are_never_called_missing_packages(
    package: ModuleType, name: str
) -> None:
    with pytest.raises(ImportError):
        load_plugin(package, name, kind="backend", remedy="pip install it")


def protocols(folder: ModuleType) -> list[type]:
    return [
        one
        for one in vars(folder).values()
        if getattr(one, "_is_protocol", False) and one.__module__ == folder.__name__
    ]


def plug_ins() -> list[tuple[str, str]]:
    found = []
    for folder in FOLDERS:
        package = importlib.import_module(folder)
        assert package.__file__ is not None
        if protocols(package):
            found += [(folder, name) for name in plugin_names(package.__file__)]
    return found


def parameters(function: object) -> list[str]:
    """The names of a function's parameters that a caller must give, without a method's `self`."""
    assert callable(function)
    given = inspect.signature(function).parameters.values()
    return [one.name for one in given if one.name != "self" and one.default is one.empty]


@pytest.mark.parametrize(("folder", "name"), plug_ins())
def test_every_plug_in_has_the_constants_and_functions_of_its_protocol(folder: str, name: str) -> None:
    package = importlib.import_module(folder)
    (protocol,) = protocols(package)
    try:
        module = load_plugin(package, name, kind="plug-in", remedy="")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    for member, declared in vars(protocol).items():
        if isinstance(declared, property):
            assert not inspect.isroutine(getattr(module, member)), f"{member} is a constant"
        elif inspect.isfunction(declared) and not member.startswith("_"):
            assert parameters(getattr(module, member)) == parameters(declared), member


def test_the_plug_ins_of_every_kind_are_found() -> None:
    found = plug_ins()
    assert ("exporter.lowering.precisions", "int8") in found
    assert ("exporter.models.sources", "torchvision") in found


@pytest.mark.parametrize("name", observers())
def test_every_observer_takes_a_histogram_alone(name: str) -> None:
    assert parameters(observers()[name]) == parameters(Observer.__call__)
