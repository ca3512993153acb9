"""Every plug-in of exporter/models/sources is a ModelSource: mypy checks the types, the test that none is left out."""

from __future__ import annotations

import inspect

import pytest

from exporter.models import sources
from exporter.models.sources import ModelSource, cifar, custom, timm, torchvision
from runtimes._plugins import plugin_names

CHECKED: dict[str, ModelSource] = {"cifar": cifar, "custom": custom, "timm": timm, "torchvision": torchvision}
MEMBERS = [name for name in vars(ModelSource) if not name.startswith("_")]


def test_every_source_is_checked() -> None:
    assert sources.__file__ is not None
    assert tuple(CHECKED) == plugin_names(sources.__file__)


@pytest.mark.parametrize("name", CHECKED)
def test_a_source_has_the_functions_of_the_protocol(name: str) -> None:
    for member in MEMBERS:
        expected = list(inspect.signature(getattr(ModelSource, member)).parameters)[1:]
        assert list(inspect.signature(getattr(CHECKED[name], member)).parameters) == expected, member
