"""docs/trust.md: each of its sentences is followed by the tests that hold it, all of which are run by `make test`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/trust.md").read_text()
NOT_PROSE = re.compile(r"^```.*?^```$|^#.*?$", re.DOTALL | re.MULTILINE)
LEFT_OUT = ("slow", "gpu", "skip", "xfail")


def sentences(page: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each sentence as one line, with the names of its tests; headings and code are none."""
    parts = re.split(r"<!--(.*?)-->", NOT_PROSE.sub("", page), flags=re.DOTALL)
    for text, names in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if text.strip() or names:
            yield " ".join(text.split()), tuple(names.split())


@cache
def functions_of(file: str) -> dict[str, str]:
    """The test functions of a file: name -> its decorators, and the marks of the whole file, as text."""
    tree = ast.parse((ROOT / file).read_text())
    marks = [
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)
    ]
    return {
        node.name: " ".join([*marks, *map(ast.unparse, node.decorator_list)])
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def faults(page: str) -> list[str]:
    """What is wrong with the page's proofs, a line for each."""
    found = []
    for text, names in sentences(page):
        said = re.sub(r"^- ", "", text)
        if not names:
            found.append(f"no test: {said}")
        # A bullet may begin with a short sentence in bold, which the next one explains.
        if re.search(r"[.!?]\s", re.sub(r"^\*\*[^*]*\*\*", "", said)) or not said.endswith((".", "?")):
            found.append(f"not one sentence: {said}")
        for name in names:
            file, _, function = name.partition("::")
            marks = functions_of(file).get(function) if (ROOT / file).is_file() else None
            if marks is None:
                found.append(f"no such test: {name}")
            elif any(f"mark.{mark}" in marks for mark in LEFT_OUT):
                found.append(f"not in the normal run: {name}")
    return found


def test_every_sentence_has_tests_that_run() -> None:
    assert len(list(sentences(PAGE))) > 30
    assert faults(PAGE) == []


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("It is safe.", "no test: It is safe."),
        (
            "It is safe. So is this.\n<!-- tests/test_trust_page.py::test_every_sentence_has_tests_that_run -->",
            "not one sentence",
        ),
        ("It is safe.\n<!-- tests/test_trust_page.py::test_of_nothing -->", "no such test: tests/test_trust_page.py"),
        ("It is safe.\n<!-- tests/nowhere.py::test_of_nothing -->", "no such test: tests/nowhere.py"),
        (
            "It is safe.\n<!-- tests/test_readme.py::test_the_site_is_built_without_a_warning -->",
            "not in the normal run",
        ),
    ],
)
def test_a_sentence_without_a_test_that_runs_is_found(page: str, said: str) -> None:
    assert any(one.startswith(said) for one in faults(page))
