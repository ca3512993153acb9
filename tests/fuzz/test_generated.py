"""Texts and documents that Hypothesis makes: the same ones in each run, and none kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz_addresses import text_readers as line_readers
from fuzz_readers import Reader, json_readers
from fuzz_readers import text_readers as file_readers
from fuzz_watch import held
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CALM = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(CALM, max_examples=25)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
LINES = [*(one for one in file_readers() if one.file.endswith(".txt")), *line_readers()]
DOCUMENTS = [*(one for one in file_readers() if one.file.endswith(".json")), *json_readers()]


def _name(reader: Reader) -> str:
    return reader.name.replace(" ", "-")


@pytest.mark.parametrize("reader", LINES, ids=_name)
def test_any_lines_are_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    @FEW
    @given(st.lists(TEXTS, max_size=12).map("\n".join))
    def hold(text: str) -> None:
        held(reader.read, reader.put(tmp_path, text.encode()), named=reader.named)

    hold()


@pytest.mark.parametrize("reader", DOCUMENTS, ids=_name)
def test_any_value_in_any_place_of_a_document_is_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    right = json.loads(next(seed for seed in reader.seeds if seed.startswith((b"{", b"["))))
    paths = list(_paths(right))

    @FEW
    @given(st.sampled_from(paths), VALUES)
    def hold(path: tuple[Any, ...], value: Any) -> None:
        document = _with(right, path, value)
        held(reader.read, reader.put(tmp_path, json.dumps(document).encode()), named=reader.named)

    hold()


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Any:
    yield above
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*above, key))


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy in which another value stands at a path."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = _with(document[path[0]], path[1:], value)
    return copy
