"""SIGKILL at any moment of a command leaves the old artefact, the new one or none, and the next run clears up."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from eval_fixtures import counts
from killed import finished, kills

from runtimes.errors import BundleError
from runtimes.nvidia.engine_file import facts_of

FEW, MANY = 4, 200


numbers = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def assert_whole(kit: Path) -> None:
    with tarfile.open(kit) as archive:
        files = {one.name: archive.extractfile(one) for one in archive if one.isfile()}
        content = {name: file.read() for name, file in files.items() if file is not None}
    sums = dict(line.split("  ")[::-1] for line in content["resnet-kit/SHA256SUMS"].decode().splitlines())
    assert {f"resnet-kit/{name}" for name in sums} | {"resnet-kit/SHA256SUMS"} == set(content)
    assert {name: hashlib.sha256(content[f"resnet-kit/{name}"]).hexdigest() for name in sums} == sums


def the_engine(bundle: Path) -> Path:
    """The bundle's engine; what a killed build left under a hidden name is none, and the next that builds removes it."""
    (engine,) = (path for path in (bundle / "engines").glob("*.engine") if not path.name.startswith("."))
    return engine


@numbers
def test_a_kit(exported: Path, tmp_path: Path, count: int) -> None:
    command = ("kit", exported, "--output", tmp_path / "kit.tar", "--force", "--quiet")
    for _ in kills(command, count, 1):
        assert_whole(tmp_path / "kit.tar")
        left = {path.name for path in tmp_path.iterdir()} - {"kit.tar"}
        assert all(name.startswith(".kit.tar.partial-") for name in left)
    finished(command)
    assert [path.name for path in tmp_path.iterdir()] == ["kit.tar"]


@numbers
def test_an_engine(proven: Path, count: int) -> None:
    command = ("build", proven, "--force", "--quiet")
    torn = 0
    for _ in kills(command, count, 2):
        engine = the_engine(proven)
        try:
            facts_of(engine)
        except BundleError as error:  # killed between two renames: it is refused, which is none
            torn += "was changed after it was built" in str(error)
    assert torn <= count // 10
    finished(("build", proven, "--quiet"))  # it builds again where there is none
    assert facts_of(the_engine(proven)).checked
    finished(command)
    assert len(list((proven / "engines").iterdir())) == 2


@numbers
def test_an_evaluation(exported: Path, deploy: Any, tmp_path: Path, count: int) -> None:
    journal = tmp_path / "journal"
    command = ("eval", exported, "--data", "built-in", "--images", 1200, "--resume", journal, "--json", "--quiet")
    whole = counts(deploy("eval", *command[1:6], "--json").json)
    before = 0
    for number in kills(command, count, 3):
        if number % 3 == 0:
            journal.unlink(missing_ok=True)
            before = 0
        size = journal.stat().st_size if journal.exists() else 0
        assert size >= before or number % 3 == 0
        before = size
    assert counts(deploy(*command[:-1]).json) == whole
    rows = [row for line in journal.read_bytes().splitlines()[1:] for row in json.loads(line)["rows"]]
    assert sorted(row[0] for row in rows) == list(range(1200))
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
