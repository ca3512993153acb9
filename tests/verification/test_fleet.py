"""`resnet-parity.toml`: one command checks all the bundles that a repository keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import Ran

from exporter.verification.parity_toml import CONFIG, Settings, entries_from_toml
from runtimes.errors import BadInput, PlanError, UnknownName

FULL = """
backends = ["onnxruntime"]
data = "images"
images = 100
budget = { min_agreement = 0.99, own_error = 0.02 }

[[bundles]]
path = "one"

[[bundles]]
path = "nested/two"
backends = ["all"]
data = "built-in"
against = "released/two"
[bundles.budget]
min_agreement = 0.9
min_sqnr_db = 25
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "resnet-parity.toml"
    path.write_text(text)
    return path


def test_what_a_bundle_does_not_say_the_file_says(tmp_path: Path) -> None:
    one, two = entries_from_toml(written(tmp_path, FULL))
    common = {"min_agreement": 0.99, "own_error": 0.02}
    assert (one.path, one.settings) == (
        tmp_path / "one",
        Settings(("onnxruntime",), str(tmp_path / "images"), 100, common),
    )
    assert two.path == tmp_path / "nested" / "two"
    budget = {"min_agreement": 0.9, "own_error": 0.02, "min_sqnr_db": 25.0}
    assert two.settings == Settings(("all",), "built-in", 100, budget, str(tmp_path / "released" / "two"))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("bundels = []", UnknownName, "unknown key in .*resnet-parity.toml 'bundels'; did you mean bundles?"),
        (
            '[[bundles]]\npath = "a"\nbugdet = {}',
            UnknownName,
            "unknown key in .*, bundle 1 'bugdet'; did you mean budget?",
        ),
        ('[[bundles]]\nbackends = ["all"]', BadInput, "bundle 1: expected a path, got None"),
        ("[[bundles]]\npath = 3", BadInput, "bundle 1: expected a path, got 3"),
        ('bundles = "a"', BadInput, r"expected bundles as tables, \[\[bundles\]\]"),
        (
            'backends = "onnxruntime"\n[[bundles]]\npath = "a"',
            BadInput,
            r'expected a list of names, as \["onnxruntime"\] for backends, got',
        ),
        ('data = 3\n[[bundles]]\npath = "a"', BadInput, "expected the name of a source in quotes for data, got 3"),
        (
            '[[bundles]]\npath = "a"\nbudget = { min_cosine = "high" }',
            BadInput,
            "bundle 1: expected limits with numbers, as .* for budget, got",
        ),
        (
            '[[bundles]]\npath = "a"\nagainst = ["b"]',
            BadInput,
            "bundle 1: expected the folder of a bundle in quotes for against, got",
        ),
        ('images = 0\n[[bundles]]\npath = "a"', BadInput, "expected a whole number, 1 or more for images, got 0"),
        (
            '[[bundles]]\npath = "a"\nimages = -3',
            BadInput,
            "bundle 1: expected a whole number, 1 or more for images, got -3",
        ),
        ('timeout_s = 0\n[[bundles]]\npath = "a"', BadInput, "expected seconds, more than 0 for timeout_s, got 0"),
        ('path = "a"', UnknownName, "unknown key in .*resnet-parity.toml 'path'; choose from"),
        ("", PlanError, "names no bundle; add one"),
        ("bundles = [", BadInput, "is no TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, text: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        entries_from_toml(written(tmp_path, text))


def test_a_backend_may_be_given_seconds_to_answer(tmp_path: Path) -> None:
    first, second = entries_from_toml(
        written(tmp_path, 'timeout_s = 600\n[[bundles]]\npath = "a"\n[[bundles]]\npath = "b"\ntimeout_s = 1.5\n')
    )
    assert (first.settings.timeout_s, second.settings.timeout_s) == (600, 1.5)


def test_bytes_that_are_no_text_are_no_toml(tmp_path: Path) -> None:
    (tmp_path / "resnet-parity.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is no TOML"):
        entries_from_toml(tmp_path / "resnet-parity.toml")


# --- the command ---


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, shipped_bundle: Any) -> Path:
    """A repository with two bundles."""
    folder = tmp_path_factory.mktemp("fleet")
    for precision in ("fp32", "fp16"):
        shutil.copytree(shipped_bundle(precision).folder, folder / precision)
    return folder


@pytest.fixture
def check(deploy: Any, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`resnet-deploy check --quiet` in that repository."""
    monkeypatch.chdir(kept)

    def call(text: str | None, *arguments: object) -> Ran:
        if text is not None:
            written(kept, text)
        result: Ran = deploy("check", "--quiet", *arguments)
        return result

    return call


BOTH = 'backends = ["onnxruntime"]\n[[bundles]]\npath = "fp32"\n[[bundles]]\npath = "fp16"\n'


def test_one_command_checks_every_bundle(check: Any) -> None:
    shown = check(BOTH, "--json")
    assert shown.code == 0
    assert [(one["name"], one["ok"], len(one["backends"])) for one in shown.json["bundles"]] == [
        ("resnet20-fp32", True, 1),
        ("resnet20-fp16", True, 1),
    ]


def test_a_broken_budget_of_one_is_the_end_of_all_but_the_others_are_told(check: Any) -> None:
    shown = check(f"{BOTH}budget = {{ max_relative_error = 1e-9 }}\n")
    assert shown.code == 4
    assert "error: resnet20-fp16: onnxruntime is out of budget" in shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith("onnxruntime")]
    assert [line.split()[-1] for line in lines] == ["ok", "BUDGET"]


def test_a_bundle_that_cannot_be_asked_does_not_keep_the_others_from_answering(
    check: Any, kept: Path, tmp_path: Path
) -> None:
    (kept / "empty").mkdir(exist_ok=True)
    shown = check(f'{BOTH}data = "empty"\n', "--junit", tmp_path / "junit.xml")
    assert (shown.code, "holds no pictures" in shown.err) == (2, True)
    assert next(line for line in shown.out.splitlines() if line.startswith("onnxruntime")).endswith("ok")
    first, second = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert ((first.get("name"), first.get("errors")), (second.get("name"), second.get("errors"))) == (
        ("resnet20-fp32", "0"),
        ("resnet20-fp16", "1"),
    )


def test_bundles_of_one_name_are_told_apart(check: Any, kept: Path, tmp_path: Path) -> None:
    assert (
        check(None, kept / "fp32", kept / "fp32", "--backend", "onnxruntime", "--junit", tmp_path / "junit.xml").code
        == 0
    )
    assert [suite.get("name") for suite in ElementTree.parse(tmp_path / "junit.xml").getroot()] == [
        "resnet20-fp32-1",
        "resnet20-fp32-2",
    ]


def test_the_command_line_goes_before_the_file(check: Any) -> None:
    assert check(BOTH, "--budget", "max_relative_error=1e-9").code == 4
    shown = check(BOTH, "--backend", "pytorch", "--json")
    assert {one["backend"] for checked in shown.json["bundles"] for one in checked["backends"]} == {"pytorch"}


def test_another_file_may_be_named_and_its_paths_are_its_own(
    check: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(BOTH, "--json")
    monkeypatch.chdir(tmp_path)
    assert check(None, "--config", kept / "resnet-parity.toml", "--json").code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{BOTH}budget = {{ min_agrement = 0.9 }}", "unknown budget 'min_agrement'; did you mean min_agreement?"),
        (f'{BOTH}backends = ["onnxrt"]', "unknown backend 'onnxrt'; did you mean onnxruntime?"),
        (f"{BOTH}backends = []", "expected a backend for"),
        (f"{BOTH}images = 3", "a number of images needs --data: golden inputs are all run"),
    ],
)
def test_a_wrong_setting_of_the_last_bundle_is_refused_before_the_first_is_checked(
    check: Any, text: str, said: str
) -> None:
    shown = check(text)
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_a_bundle_that_is_not_there_is_named(check: Any) -> None:
    shown = check('[[bundles]]\npath = "gone"\n')
    assert (shown.code, "resnet-parity.toml: gone is no bundle" in shown.error) == (1, True)
    assert check(None, "gone").error.startswith("error: gone is no bundle")


def test_no_bundle_and_no_file_is_told_what_to_give(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = deploy("check")
    assert (shown.code, f"there is no {CONFIG} here" in shown.error) == (2, True)
    shown = deploy("check", "--config", "gone.toml")
    assert (shown.code, "cannot read gone.toml" in shown.error) == (2, True)


def test_bundles_and_a_file_at_once_are_refused(check: Any) -> None:
    shown = check(BOTH, "fp32", "--config", "resnet-parity.toml")
    assert (shown.code, "expected bundles or --config, got both" in shown.error) == (2, True)
