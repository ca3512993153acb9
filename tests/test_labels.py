"""Class names from a text file, class_indices.json, or folders; and what is wrong with those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.labels import checked_labels, labels_from_path
from runtimes.errors import BadInput

FLOWERS = ("daisy", "rose", "tulip")


@pytest.mark.parametrize("value", [{"0": "daisy", "1": "rose", "2": "tulip"}, {"tulip": 2, "daisy": 0, "rose": 1}, ["daisy", "rose", "tulip"]])
def test_json_of_either_direction_gives_the_names_in_order(tmp_path: Path, value: object) -> None:
    path = tmp_path / "class_indices.json"
    path.write_text(json.dumps(value))
    assert labels_from_path(path) == FLOWERS


def test_more_than_ten_are_ordered_by_number_and_not_by_text(tmp_path: Path) -> None:
    path = tmp_path / "class_indices.json"
    path.write_text(json.dumps({str(number): f"class {number}" for number in range(12)}, indent=4))
    assert labels_from_path(path) == tuple(f"class {number}" for number in range(12))


def test_a_text_file_has_one_a_line_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "labels.txt").write_text("\n".join(FLOWERS) + "\n", encoding=encoding)
        assert labels_from_path(tmp_path / "labels.txt") == FLOWERS


def test_folders_are_numbered_as_imagefolder_numbers_them(tmp_path: Path) -> None:
    from PIL import Image
    from torchvision.datasets import ImageFolder

    for name in ("tulip", "Rose", "daisy", "10", "9"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "a.png")
    (tmp_path / "notes.txt").write_text("")
    assert labels_from_path(tmp_path) == tuple(ImageFolder(str(tmp_path)).classes)


BROKEN = {
    "{": "it is not JSON",
    "3": 'expected {"0": "daisy", ...} or {"daisy": 0, ...}, got int',
    "{}": "expected a name of one line for each number from 0 to 0, got None for 0",
    '{"0": "a", "2": "b"}': "for each number from 0 to 1, got None for 1",
    '{"1": "a", "2": "b"}': "got None for 0",
    '{"a": 0, "b": 0}': "got None for 1",
    '{"0": ["n01440764", "tench"]}': "got ['n01440764', 'tench'] for 0",
    '{"0": "two\\nlines"}': r"got 'two\nlines' for 0",
}


@pytest.mark.parametrize(("text", "says"), BROKEN.items())
def test_json_that_does_not_number_the_classes_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "class_indices.json"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        labels_from_path(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(BadInput, match="cannot read the labels in .*latin.txt"):
        labels_from_path(tmp_path / "latin.txt")
    with pytest.raises(BadInput, match="cannot read the labels in .*none.json"):
        labels_from_path(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty to hold a subfolder for each class, got none"):
        labels_from_path(tmp_path / "empty")


def test_the_count_must_be_the_heads(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps(FLOWERS))
    (tmp_path / "l.txt").write_text("\n".join(FLOWERS))
    assert checked_labels(tmp_path / "l.json", 3) == FLOWERS
    with pytest.raises(BadInput, match="expected 5 labels, got 3; the model has 5 classes"):
        checked_labels(tmp_path / "l.json", 5)
    with pytest.raises(BadInput, match="expected 2 labels, one a line, got 3"):
        checked_labels(tmp_path / "l.txt", 2)
    (tmp_path / "tree" / "daisy").mkdir(parents=True)
    with pytest.raises(BadInput, match="expected 2 subfolders, got 1"):
        checked_labels(tmp_path / "tree", 2)
