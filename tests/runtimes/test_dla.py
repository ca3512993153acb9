"""The table of what has DLA: every version is in one stretch, and boards are known by their names."""

from __future__ import annotations

from itertools import pairwise

import pytest

from runtimes.board.dla import TABLE, board_has_dla, dla_refusal, dla_versions


def test_the_stretches_follow_each_other_and_have_sources() -> None:
    assert [one.last for one in TABLE].index(None) == len(TABLE) - 1
    for before, after in pairwise(TABLE):
        assert before.last is not None
        assert before.first <= before.last < after.first
    assert all(one.source for one in TABLE)


@pytest.mark.parametrize(
    ("version", "dla", "pairs"),
    [
        ("10.3.0.30", True, False),
        ("10.7.0.23", True, False),
        ("10.8.0.43", False, False),
        ("10.16.2.10", False, False),
        ("11.0.0.114", False, False),
        ("11.3.1", False, False),
        ("11.4.0.106", False, False),
        ("11.4.1.7", True, True),
        ("12.0", True, True),
    ],
)
def test_versions(version: str, dla: bool, pairs: bool) -> None:
    known = dla_versions(version)
    assert known is not None
    assert (known.dla, known.pairs) == (dla, pairs)


@pytest.mark.parametrize("version", ["8.5.2.2", "", "unknown"])
def test_a_version_before_the_table_is_not_known(version: str) -> None:
    assert dla_versions(version) is None
    assert dla_refusal(version, "", "int8") == ""


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", True),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", True),
        ("NVIDIA Orin Nano Developer Kit", False),
        ("NVIDIA Jetson AGX Thor Developer Kit", False),
        ("Raspberry Pi 5 Model B Rev 1.0", None),
        ("", None),
    ],
)
def test_boards(name: str, has: bool | None) -> None:
    assert board_has_dla(name) is has
    assert bool(dla_refusal("10.3.0.30", name, "fp16")) is (has is False)
