"""Class names from a text file, class_indices.json, or folders; and what is wrong with those that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from exporter.models.labels import labels_for_classes, labels_from_path
from runtimes.errors import BadInput

FLOWERS = ("daisy", "rose", "tulip")


@pytest.mark.parametrize(
    "value",
    [{"0": "daisy", "1": "rose", "2": "tulip"}, {"tulip": 2, "daisy": 0, "rose": 1}, ["daisy", "rose", "tulip"]],
)
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


NAMES_WITH_LINE_ENDS_OF_UNICODE = ("top\u2028half", "cat\x85s", "form\x0cfeed", "a\x1cb", "vertical\x0btab", "plain")


def test_only_a_newline_ends_a_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join(NAMES_WITH_LINE_ENDS_OF_UNICODE).encode())
        assert labels_from_path(path) == NAMES_WITH_LINE_ENDS_OF_UNICODE
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(NAMES_WITH_LINE_ENDS_OF_UNICODE))
    assert labels_from_path(path) == NAMES_WITH_LINE_ENDS_OF_UNICODE


def test_blanks_around_a_name_and_empty_lines_at_the_end_are_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("daisy  \n\trose\ntulip\n\n \n")
    assert labels_from_path(path) == FLOWERS


@pytest.mark.parametrize(
    ("text", "line"), [("daisy\n\ntulip\n", 2), ("\ndaisy\nrose\n", 1), ("daisy\nrose\n \u2028\ntulip", 3)]
)
def test_an_empty_line_before_a_name_is_refused_by_its_number(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"labels.txt, line {line}: expected a class name, got an empty line"):
        labels_for_classes(path, 3)


def test_a_text_file_in_utf_16_is_read_by_its_byte_order_mark_and_refused_without(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        path.write_bytes((mark + "daisy\r\nr\u00f6schen\r\ntulip\r\n").encode(encoding))
        assert labels_from_path(path) == ("daisy", "r\u00f6schen", "tulip")
    path.write_bytes("daisy\nrose\n".encode("utf-16-le"))
    with pytest.raises(BadInput, match="it holds zero bytes"):
        labels_from_path(path)


FORMS = {
    "clsidx_to_labels.txt": "{0: 'daisy',\n 1: 'rose, \"wild\"',\n 2: 'tulip'}",
    "assigned.txt": "NAMES = {\n  0: 'daisy',\n  1: 'rose, \"wild\"',\n  2: 'tulip',\n}\n",
    "list.txt": "['daisy', 'rose, \"wild\"', 'tulip']",
    "json.txt": json.dumps({"0": "daisy", "1": 'rose, "wild"', "2": "tulip"}),
    "imagenet_class_index.json": json.dumps(
        {str(place): [f"n{place:08}", name] for place, name in enumerate(("daisy", 'rose, "wild"', "tulip"))}
    ),
    "config.json": json.dumps(
        {"depths": [2, 2], "id2label": {"0": "daisy", "1": 'rose, "wild"', "2": "tulip"}, "label2id": {"daisy": 0}}
    ),
    "old_config.json": json.dumps({"label2id": {"tulip": "2", "daisy": "0", 'rose, "wild"': "1"}}),
    "timm.json": json.dumps({"num_classes": 3, "label_names": ["daisy", 'rose, "wild"', "tulip"]}),
    "class_to_idx.JSON": json.dumps({"class_to_idx": {"tulip": 2, "daisy": 0, 'rose, "wild"': 1}}),
    "indexed.csv": '2,tulip\n0,daisy\n1,rose, "wild"\n',
    "indexed.txt": '0: daisy\n1: rose, "wild"\n2: tulip\n',
    "from_one.tsv": '1\tdaisy\n2\trose, "wild"\n3\ttulip\n',
    "synset_words.txt": 'n00000003 daisy\nn00000001 rose, "wild"\nn00000002 tulip\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_label_files_as_tools_write_them_give_the_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name])
    assert labels_for_classes(tmp_path / name, 3) == ("daisy", 'rose, "wild"', "tulip")


REFUSED = {
    "nested.txt": ("[" * 100_000 + "]" * 100_000, "nor a Python dict or list of names"),
    "code.txt": ("{0: print('daisy')}", "nor a Python dict or list of names"),
    "set.txt": ("{'daisy', 'rose'}", "got set"),
    "gap.txt": ("{0: 'daisy', 2: 'rose'}", "got None for 1"),
    "twice.json": ('{"0": "daisy", "1": "rose", "1": "tulip"}', "'1' stands in it twice"),
    "surrogate.json": ('["\\ud800"]', "a name of one line of UTF-8"),
    "mac.txt": ("daisy\rrose\rtulip", r"got 'daisy\rrose\rtulip' for 0"),
    "devkit.txt": ("n00000002 1 kit_fox\nn00000001 2 tench\n", "ImageNet's devkit"),
    "from_one.csv": ("2,rose\n1,daisy\n", "expected lines numbered 0 to 1, each once, got 1 to 2"),
    "shuffled.txt": ("1 rose\n0 daisy\n", "in the order of the numbers that they begin with"),
    "names.yaml": ("0: daisy\n1: rose\n", "got YAML"),
    "pointer.txt": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_taken_for_names_and_is_something_else_is_refused(tmp_path: Path, name: str) -> None:
    text, says = REFUSED[name]
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        labels_from_path(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_numbers_that_nothing_sets_off_belong_to_the_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("1 cent\n2 cents\n50 cents\n")
    assert labels_from_path(tmp_path / "labels.txt") == ("1 cent", "2 cents", "50 cents")
    (tmp_path / "labels.txt").write_text("0 tench\n1 goldfish\n")
    assert labels_from_path(tmp_path / "labels.txt") == ("0 tench", "1 goldfish")


@pytest.mark.parametrize(
    ("parts", "right"), [(("Val", "Train"), "Train"), (("test", "valid", "notes"), "valid"), (("testing",), "testing")]
)
def test_the_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: tuple[str, ...], right: str) -> None:
    for name in parts:
        (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=f"give one of them: --labels {tmp_path / right}$"):
        labels_from_path(tmp_path)


def test_a_train_among_other_vehicles_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train", "tram"):
        (tmp_path / name).mkdir()
    assert labels_from_path(tmp_path) == ("bus", "train", "tram")


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
    '{"0": ["tench", "n01440764"]}': "got ['tench', 'n01440764'] for 0",
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
    (tmp_path / "tree" / "caf\udce9").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"a name of one line of UTF-8 .* got 'caf\\udce9' for 0"):
        labels_from_path(tmp_path / "tree")
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
    assert labels_for_classes(tmp_path / "l.json", 3) == FLOWERS
    with pytest.raises(BadInput, match="expected 5 labels, got 3; the model has 5 classes"):
        labels_for_classes(tmp_path / "l.json", 5)
    with pytest.raises(BadInput, match="expected 2 labels, one a line, got 3"):
        labels_for_classes(tmp_path / "l.txt", 2)
    (tmp_path / "tree" / "daisy").mkdir(parents=True)
    with pytest.raises(BadInput, match="expected 2 subfolders, got 1"):
        labels_for_classes(tmp_path / "tree", 2)
