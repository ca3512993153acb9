"""Which class of the model each class of a data set is, and the labels of a flat folder, in every form they come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.annotations import with_labels
from calibration.classes import Matching, ModelClasses, labels_or_reason, match_classes, match_source
from calibration.data import ImageSource, built_in, open_source
from calibration.synsets import synsets_from_file
from runtimes.errors import BadInput

SYNSETS = tuple(f"n{number:08}" for number in np.random.default_rng(0).permutation(10**6)[:1000])


def match(
    names: Sequence[str], count: int, labels: tuple[str, ...] | None = None, synsets: tuple[str, ...] | None = None
) -> Matching:
    return match_classes(names, ModelClasses(count, labels, synsets), "the data")


def refusal(
    names: Sequence[str], count: int, labels: tuple[str, ...] | None = None, synsets: tuple[str, ...] | None = None
) -> str:
    with pytest.raises(BadInput) as raised:
        match(names, count, labels, synsets)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- by name ---


def test_names_are_found_among_the_labels_wherever_they_stand() -> None:
    assert match(("ant", "bee", "cat"), 3, ("cat", "ant", "bee")) == Matching((1, 2, 0), "by name")
    assert match(("bee",), 3, ("cat", "ant", "bee")).indices == (2,)


def test_letter_case_and_punctuation_do_not_matter_where_names_do_not_match_as_they_stand() -> None:
    labels = ("great white shark", "T-shirt/top", "Eskimo dog, husky", "Straße")
    found = match(("STRASSE", "Great_White_Shark", "T-shirt_top", "eskimo-dog  husky"), 4, labels)
    assert found == Matching((3, 0, 1, 2), "by name, letter case and punctuation aside")


def test_a_dog_and_a_garment_are_not_made_one() -> None:
    labels = ("Cardigan", "tench", "cardigan")
    assert match(("Cardigan", "cardigan", "tench"), 3, labels).indices == (0, 2, 1)
    assert "'cardigan' may be class 0 (Cardigan) and 2 (cardigan)" in refusal(("TENCH", "cardigan"), 3, labels)


def test_a_name_of_two_classes_is_refused_and_one_of_two_that_no_data_has_is_not() -> None:
    labels = ("crane", "maillot", "tench", "crane")
    assert "'crane' may be class 0 (crane) and 3 (crane)" in refusal(("crane", "tench"), 4, labels)
    assert match(("maillot", "tench"), 4, labels).indices == (1, 2)


def test_two_names_of_one_class_are_refused() -> None:
    assert "'a_b', 'A B' are all class 1 (a b)" in refusal(("a_b", "A B"), 2, ("c", "a b"))


def test_names_that_are_no_labels_are_shown_beside_the_labels_with_the_remedy() -> None:
    said = refusal(("ant", "wolf", "yak"), 3, ("ant", "bee", "cat"))
    assert "among the model's 3 labels ('ant', 'bee', 'cat'), got 2 others ('wolf', 'yak'); rename them" in said
    assert "('a', 'b', 'c', ...)" in refusal(("yak",), 4, ("a", "b", "c", "d"))


# --- by WordNet id ---


def test_a_thousand_wordnet_ids_are_in_sorted_order_whatever_the_labels_are() -> None:
    labels = tuple(f"label {place}" for place in range(1000))
    found = match(SYNSETS, 1000, labels)
    assert found.how == "by the sorted order of their WordNet ids"
    assert [sorted(SYNSETS)[index] for index in found.indices] == list(SYNSETS)
    assert match(SYNSETS, 1000) == found


def test_fewer_wordnet_ids_need_the_list() -> None:
    said = refusal(SYNSETS[:10], 1000)
    assert "got 10" in said
    assert "give resnet-deploy eval --synsets" in said
    assert "give resnet-deploy eval --synsets" in refusal(SYNSETS[:10], 10, tuple("abcdefghij"))
    found = match(("n00000007", "n00000002"), 3, None, ("n00000002", "n00000001", "n00000007"))
    assert found == Matching((2, 0), "by --synsets")
    assert "got 'n00000009'" in refusal(("n00000009",), 2, None, ("n00000002", "n00000001"))


def test_labels_that_are_wordnet_ids_themselves_are_names() -> None:
    assert match(SYNSETS[:3], 4, (*reversed(SYNSETS[:3]), "n99999999")).indices == (2, 1, 0)
    assert "another order" in refusal(SYNSETS[:2], 2, SYNSETS[:2], (SYNSETS[1], SYNSETS[0]))


@pytest.mark.parametrize("form", ["LOC_synset_mapping.txt", "imagenet_class_index.json", "INDEX.JSON", "synsets.txt"])
def test_each_form_of_the_synset_list_is_read(tmp_path: Path, form: str) -> None:
    ids = ("n01440764", "n01443537", "n00000003")
    path = tmp_path / form
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps({str(place): [name, f"name {place}"] for place, name in enumerate(ids)}))
    elif form == "synsets.txt":
        path.write_text("\n".join(ids))
    else:
        path.write_text("".join(f"{name} tench,\u2028Tinca\x0ctinca\n" for name in ids) + "\n")
    assert synsets_from_file(path, 3) == ids


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "cannot read"),
        ("empty.txt", "", "expected 2 different WordNet ids"),
        ("few.txt", "n00000001\n", "expected 2 different WordNet ids"),
        ("same.txt", "n00000001 a\nn00000001 b\n", "got 1 in 2"),
        ("words.txt", "tench\ngoldfish\n", "got 'tench' in place 1"),
        ("gap.txt", "n00000001\n\nn00000002\n", "got '' in place 2"),
        ("map_clsloc.txt", "n00000002 1 kit_fox\nn00000001 2 tench\n", "ImageNet's devkit"),
        ("list.json", '["n00000001"]', "got something else"),
        ("gap.json", '{"0": ["n00000001", "a"], "2": ["n00000002", "b"]}', "got something else"),
        ("torn.json", '{"0": ["n0', "cannot read"),
        ("latin.txt", b"n00000001 \xff\n", "cannot read"),
    ],
)
def test_a_synset_list_that_is_none_is_refused(tmp_path: Path, name: str, text: str | bytes | None, said: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=said):
        synsets_from_file(path, 2)


# --- by number, and in order ---


TWELVE = tuple(sorted(str(place) for place in range(12)))
BY_NUMBER = (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)


def test_numbers_are_sorted_as_numbers_where_labels_or_a_file_say_that_they_are_no_names() -> None:
    assert TWELVE[2] == "10"
    assert match(TWELVE, 12, tuple("abcdefghijkl")) == Matching(BY_NUMBER, "by number")
    assert match_classes(TWELVE, ModelClasses(12), "the file", folders=False) == Matching(BY_NUMBER, "by number")
    assert match(("0003", "07"), 10, tuple("abcdefghij")).indices == (3, 7)


@pytest.mark.parametrize(
    ("names", "count"), [(TWELVE, 12), (("0", "5"), 12), (("0", "02", "1"), 3)], ids=["all", "some", "two widths"]
)
def test_folders_of_numbers_whose_order_as_text_is_another_are_refused_without_labels(
    names: tuple[str, ...], count: int
) -> None:
    assert "export the model with --labels, the folder that it was trained on" in refusal(names, count)


def test_the_refusal_of_numbers_shows_both_readings() -> None:
    assert (
        "the folder '10' may be class 10, by its number, or class 2, by its place among the folders' sorted names"
        in refusal(TWELVE, 12)
    )


def test_folders_of_numbers_whose_readings_agree_are_told_by_number() -> None:
    padded = tuple(f"{place:03}" for place in range(12))
    assert match(padded, 12) == Matching(tuple(range(12)), "by number")
    assert match(padded[3:9:2], 12).indices == (3, 5, 7)
    assert match(tuple(map(str, range(10))), 10).indices == tuple(range(10))
    assert match(("0", "1"), 12).indices == (0, 1)


def test_labels_that_are_the_folders_numbers_say_which_class_each_is() -> None:
    assert match(TWELVE, 12, TWELVE) == Matching(tuple(range(12)), "by name")
    assert match(("10", "2"), 12, TWELVE).indices == (2, 4)


def test_numbers_from_one_are_refused_since_nothing_says_in_which_order_they_count() -> None:
    said = refusal([str(place) for place in range(1, 1001)], 1000)
    assert "ILSVRC2012_validation_ground_truth.txt" in said
    assert "LOC_val_solution.csv" in said
    assert match(("1", "2"), 3).indices == (1, 2)


def test_numbers_too_large_or_in_two_spellings_are_refused() -> None:
    assert "from 0 to 9, since the model has 10, got 10" in refusal(("0", "10"), 10)
    assert "two spellings" in refusal(("1", "01"), 10)


def test_without_labels_as_many_names_as_classes_are_in_their_order_and_fewer_are_refused() -> None:
    assert match(("ant", "bee"), 2) == Matching((0, 1), "by the sorted order of their names")
    assert "expected as many classes as the model's 3, got 2 ('ant', 'bee')" in refusal(("ant", "bee"), 3)


# --- of a source ---


def test_a_sources_labels_become_the_models_and_its_classes_all_of_the_models() -> None:
    source = ImageSource("data", 3, built_in("test").image, np.array([1, 0, 1]), ("ant", "bee"))
    found, how = match_source(source, ModelClasses(3, ("bee", "cat", "ant")))
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes, how) == ([0, 2, 0], ("bee", "cat", "ant"), "by name")
    found, _ = match_source(source, ModelClasses(2))
    assert found.classes == ("ant", "bee")


def test_labels_without_names_are_class_indices() -> None:
    source = ImageSource("data", 3, built_in("test").image, np.array([1, 0, 4]))
    found, how = match_source(source, ModelClasses(5))
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes, how) == ([1, 0, 4], ("0", "1", "2", "3", "4"), "by number")
    with pytest.raises(BadInput, match="got 4"):
        match_source(source, ModelClasses(4))
    with pytest.raises(BadInput, match="--synsets is for classes that are WordNet ids"):
        match_source(source, ModelClasses(2, None, SYNSETS[:2]))
    with pytest.raises(BadInput, match="expected a class for each picture of data, got none; put"):
        match_source(ImageSource("data", 3, built_in("test").image), ModelClasses(5))


def source_of(folder: Path, *names: str) -> ImageSource:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return open_source(str(folder))


def test_classes_that_are_not_the_models_are_said_with_the_reason(tmp_path: Path) -> None:
    tree = source_of(tmp_path / "tree", "ant/1.png", "bee/2.png")
    labels, reason = labels_or_reason(tree, ModelClasses(3, ("Bee", "cat", "Ant")))
    assert labels is not None
    assert (labels.tolist(), reason) == ([2, 0], "")
    labels, reason = labels_or_reason(tree, ModelClasses(2, ("cat", "bee")))
    assert (labels, "got 1 others ('ant')" in reason) == (None, True)


def test_a_picture_beside_the_class_folders_is_named_for_the_reason(tmp_path: Path) -> None:
    labels, reason = labels_or_reason(
        source_of(tmp_path, "ant/1.png", "bee/2.png", "stray.png"), ModelClasses(2, ("ant", "bee"))
    )
    assert (labels, "got 'stray.png' in no folder" in reason) == (None, True)


def test_pictures_in_no_folders_and_features_have_no_classes_and_no_reason(tmp_path: Path) -> None:
    assert labels_or_reason(source_of(tmp_path / "flat", "1.png", "2.png"), ModelClasses(2)) == (None, "")
    assert labels_or_reason(source_of(tmp_path / "tree", "ant/1.png", "bee/2.png"), ModelClasses(0)) == (None, "")


def test_folders_of_numbers_are_refused_and_indices_of_a_file_are_read_though_as_text_they_are_sorted_otherwise(
    tmp_path: Path,
) -> None:
    folders = source_of(tmp_path / "tree", *(f"{place}/a.png" for place in range(12)))
    with pytest.raises(BadInput, match="the folder '10' may be class 10"):
        match_source(folders, ModelClasses(12))
    flat = source_of(tmp_path / "flat", *(f"{place:02}.png" for place in range(12)))
    (tmp_path / "val.txt").write_text("".join(f"{place:02}.png {place}\n" for place in range(12)))
    found, how = match_source(with_labels(flat, tmp_path / "val.txt"), ModelClasses(12))
    assert found.labels is not None
    assert (found.labels.tolist(), how) == (list(range(12)), "by number")


# --- labels from a file ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of them deeper."""
    path = tmp_path / "val"
    for name in ("b.JPEG", "a.JPEG", "c 1.JPEG", "deep/d.JPEG"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path / name)
    return path


def given(folder: Path, text: str | bytes) -> list[str]:
    """The class of each picture, in the order a, b, c 1, d."""
    path = folder.parent / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = with_labels(open_source(str(folder)), path)
    assert source.labels is not None
    assert source.classes is not None
    assert source.names == ("a.JPEG", "b.JPEG", "c 1.JPEG", "deep/d.JPEG")
    return [source.classes[label] for label in source.labels]


@pytest.mark.parametrize(
    "text",
    [
        "b.JPEG\tBe\na.JPEG\tAn ant\nc 1.JPEG\tCat\ndeep/d.JPEG\tDog\n",
        "b.JPEG,Be\na,An ant\nc 1,Cat\nd,Dog",
        "b.JPEG,Be\r\na.JPEG,An ant\r\nc 1.JPEG,Cat\r\ndeep/d,Dog\r\n\r\n",
        "val/b.JPEG\tBe\nval/a\tAn ant\n./c 1.JPEG\tCat\nd.JPEG\tDog\n",
        "\ufeffAn ant\nBe\nCat\nDog\n",
        "\ufeffAn ant\r\nBe\r\nCat\r\nDog\r\n".encode("utf-16-le"),
    ],
    ids=["tab", "comma", "crlf", "other paths", "a class a line", "utf-16"],
)
def test_each_form_of_a_labels_file_is_read(folder: Path, text: str | bytes) -> None:
    assert given(folder, text) == ["An ant", "Be", "Cat", "Dog"]


def test_only_a_newline_ends_a_line_of_a_labels_file(folder: Path) -> None:
    assert given(folder, "An\u2028ant\nBe\x85\x0ce\nCat\nDog\n") == ["An\u2028ant", "Be\x85\x0ce", "Cat", "Dog"]


def test_spaces_and_kaggles_boxes_are_read(folder: Path) -> None:
    (folder / "c 1.JPEG").rename(folder / "c.JPEG")
    source = open_source(str(folder))
    path = folder.parent / "labels.txt"
    for text in (
        "a.JPEG 3\nb.JPEG 10\nc.JPEG 3\nd.JPEG 9\n",
        "ImageId,PredictionString\nb,10 1 2 3 4 \nd,9 1 2 3 4 9 5 6 7 8 \nc,3 1 2 3 4\na,3 0 0 1 1\n",
    ):
        path.write_text(text)
        found = with_labels(source, path)
        assert found.labels is not None
        assert found.classes is not None
        assert [found.classes[label] for label in found.labels] == ["3", "10", "3", "9"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("1\n2\n3\n", "expected a class a line for each of the 4 pictures .* got 3 lines that start with '1'"),
        ("1\n2\n3\n4\n5\n", "got 5 lines"),
        ("1\n\n3\n4\n", "got an empty line 2"),
        ("a,1\nb,2\nd,3\n", "got none for 1 of them \\('c 1.JPEG'\\)"),
        ("a,1\nb,2\nc 1,3\nd,4\nzebra.JPEG,5\n", "'zebra.JPEG' is no picture of .*val \\(it has 'a.JPEG'\\)"),
        ("zebra.JPEG 1\na.JPEG 2\nb.JPEG 3\nd.JPEG 4\n", "'zebra.JPEG' is no picture"),
        ("a,1\nb,2\nc 1,3\nd,4\na.JPEG,1\n", "got two for 'a.JPEG'"),
        ("a,1\nb\nc 1,3\nd,4\n", "line 2: expected a picture's name and its class, got 'b'"),
        ("a,1\nb,\nc 1,3\nd,4\n", "line 2: expected a picture's name and its class, got 'b,'"),
        ("ImageId,PredictionString\na\n", "line 2: expected a picture, a comma and a WordNet id, got 'a'"),
        (b"caf\xe9", "cannot read"),
        (b"\xff\xfea", "cannot read"),
    ],
)
def test_a_labels_file_that_does_not_fit_is_refused(folder: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        given(folder, text)


def test_a_short_name_of_two_pictures_is_refused_and_a_path_is_not(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "deep" / "a.JPEG")
    path = folder.parent / "labels.txt"
    path.write_text("a.JPEG,top\nb,b\nc 1,c\nd,d\ndeep/a,deep\n")
    found = with_labels(open_source(str(folder)), path)
    assert found.classes is not None
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == ["top", "b", "c", "deep", "d"]
    path.write_text("a,top\nb,b\nc 1,c\nd,d\ndeep/a,deep\n")
    with pytest.raises(BadInput, match="'a' is the name of two pictures"):
        with_labels(open_source(str(folder)), path)


def test_only_a_folder_has_names_to_label(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("1\n")
    with pytest.raises(BadInput, match="--data-labels is for a folder of pictures"):
        with_labels(built_in("test"), tmp_path / "labels.txt")
