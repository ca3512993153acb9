"""Fixtures of tests that run `resnet-deploy` on a bundle of their own. A test file imports those that it names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(name="bundle")
def bundle_fixture(exported: Path, tmp_path: Path) -> Path:
    """A copy for each test, without engines."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(name="run")
def run_fixture(deploy: Any) -> Any:
    return deploy
