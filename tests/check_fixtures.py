"""What the tests of `resnet-deploy check` share: a bundle of their own, the command, and the cases of a JUnit file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest


@pytest.fixture(name="bundle")
def bundle_fixture(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(name="run")
def run_fixture(deploy: Any) -> Any:
    return deploy


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """A JUnit file's test cases by group and name."""
    return {
        f"{case.get('classname')}.{case.get('name')}": case
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }
