"""Which Jetson a tree of files describes, and the table of JetPack releases."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from runtimes.board.jetpack import FAMILIES, JETPACKS, MODELS, board_name, jetpack_of, l4t_from_text, this_board

ORIN_NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def board_tree(root: Path, release: str | None, model: str | None, where: str = "proc/device-tree/model") -> Path:
    for path, text in (("etc/nv_tegra_release", release), (where, None if model is None else f"{model}\0")):
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return root


def test_releases_are_in_order_and_each_has_a_source() -> None:
    numbers = [tuple(map(int, one.l4t.split("."))) for one in JETPACKS]
    assert all(before < after for before, after in pairwise(numbers))
    assert all(one.source for one in JETPACKS)
    assert {target for one in JETPACKS for target in one.targets} <= {target for _, target in FAMILIES}
    assert [one.name for one in JETPACKS if not one.takes_our_graphs][-1] == "6.0"


@pytest.mark.parametrize(
    ("text", "l4t"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8", "36.4.3"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n", "35.4.1"),
        ("# R38 (release), REVISION: 2, GCID: 1", "38.2.0"),
        ("", ""),
        ("something else", ""),
    ],
)
def test_the_release_is_read_from_its_text(text: str, l4t: str) -> None:
    assert l4t_from_text(text) == l4t


@pytest.mark.parametrize(
    ("l4t", "name"),
    [("35.6.4", "5.1.6"), ("36.4.7", "6.2.1"), ("36.5.2", "6.2.2"), ("38.2.1", "7.0"), ("39.2.1", "7.2.1")],
)
def test_a_release_of_the_same_generation_that_is_not_newer_is_taken(l4t: str, name: str) -> None:
    found = jetpack_of(l4t)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("l4t", ["32.7.1", "36.0.0", "40.1.0", ""])
def test_no_release_is_guessed_for_another_generation(l4t: str) -> None:
    assert jetpack_of(l4t) is None


@pytest.mark.parametrize("where", ["proc/device-tree/model", "sys/firmware/devicetree/base/model"])
def test_a_board_is_read_from_its_tree(tmp_path: Path, where: str) -> None:
    board = this_board(board_tree(tmp_path, "# R36 (release), REVISION: 4.3, GCID: 1", ORIN_NANO, where))
    assert board is not None
    assert (board.model, board.family, board.target, board.l4t) == (ORIN_NANO, "Orin Nano", "sm87", "36.4.3")
    assert board.jetpack is not None
    assert board.jetpack.name == "6.2"
    assert board.is_exact


@pytest.mark.parametrize("where", MODELS)
def test_a_boards_name_is_read_where_there_is_no_release(tmp_path: Path, where: str) -> None:
    assert board_name(tmp_path) == ""
    assert board_name(board_tree(tmp_path, None, ORIN_NANO, where)) == ORIN_NANO
    assert board_name(board_tree(tmp_path, None, "", where)) == ""


def test_what_a_board_hides_is_left_empty(tmp_path: Path) -> None:
    inside = this_board(board_tree(tmp_path / "container", "# R36 (release), REVISION: 4.7, GCID: 1", None))
    assert inside is not None
    assert (inside.model, inside.family, inside.target, inside.is_exact) == ("", "", None, False)
    mounted = this_board(board_tree(tmp_path / "bare", None, "NVIDIA Jetson AGX Thor Developer Kit"))
    assert mounted is not None
    assert (mounted.family, mounted.target, mounted.l4t, mounted.jetpack) == ("Thor", "sm110", "", None)


def test_another_machine_is_no_board(tmp_path: Path) -> None:
    assert this_board(tmp_path) is None
    assert this_board(board_tree(tmp_path, None, "Raspberry Pi 5 Model B Rev 1.0")) is None
    (tmp_path / "odd" / "etc" / "nv_tegra_release").mkdir(parents=True)  # a folder where a file should be
    assert this_board(tmp_path / "odd") is None
