"""What `--data` may name: folders, trees and IDX files; what is left out of them, and what is chosen."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from data_sets import LABELS, PIXELS, idx_from_array, pictures, tree
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource, built_in, choose_evenly, open_source
from runtimes.errors import BadInput


def test_a_flat_folder_gives_its_pictures_by_name_without_labels(tmp_path: Path) -> None:
    for place in (3, 1, 0, 2):
        Image.fromarray(PIXELS[place]).save(tmp_path / f"{place}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    source = open_source(str(tmp_path))
    assert (source.name, source.count, source.labels, source.classes) == (str(tmp_path), 4, None, None)
    np.testing.assert_array_equal(pictures(source), PIXELS[:4])


def test_subfolders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    for place, label in enumerate(LABELS):
        path = tmp_path / ["ant", "bee", "cat"][label] / "deeper" / f"{place}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[place]).save(path)
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("ant", "bee", "cat")
    assert source.labels is not None
    assert (source.labels.dtype.name, source.labels.tolist()) == ("int64", [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(pictures(source), PIXELS[[1, 4, 2, 3, 0, 5]])


def test_a_folder_with_pictures_beside_subfolders_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[1]).save(tmp_path / "more" / "b.png")
    source = open_source(str(tmp_path))
    assert (source.count, source.labels, source.classes) == (2, None, None)


@pytest.mark.parametrize(
    ("folders", "right"),
    [
        (("train/ant", "val/ant"), "val"),
        (("Train/ant", "VALID/ant", "test"), "VALID"),
        (("training/ant", "testing/ant"), "testing"),
        (("validation", "test", "extra"), "validation"),
        (("train",), "train"),
    ],
)
def test_the_folder_above_the_parts_of_a_data_set_names_the_one_to_give(
    folders: tuple[str, ...], right: str, tmp_path: Path
) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(tmp_path / name / "a.png")
    with pytest.raises(BadInput, match=f"got the parts of a data set .* give one of them: --data {tmp_path / right}$"):
        open_source(str(tmp_path))


def test_a_train_among_other_vehicles_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train", "tram"):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS[0]).save(tmp_path / name / "a.png")
    assert open_source(str(tmp_path)).classes == ("bus", "train", "tram")


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("whole_folder", [False, True], ids=["file", "folder"])
def test_idx_files_give_images_with_the_labels_beside_them(
    compressed: bool, whole_folder: bool, tmp_path: Path
) -> None:
    suffix = ".gz" if compressed else ""
    pixels = np.ascontiguousarray(PIXELS[..., 0])
    for split, labels in (("train", LABELS), ("t10k", LABELS[::-1])):
        for name, array in (
            (f"{split}-images-idx3-ubyte", pixels),
            (f"{split}-labels-idx1-ubyte", labels.astype(np.uint8)),
        ):
            data = idx_from_array(array)
            (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(data) if compressed else data)
    source = open_source(str(tmp_path if whole_folder else tmp_path / f"train-images-idx3-ubyte{suffix}"))
    np.testing.assert_array_equal(pictures(source), pixels)
    assert source.labels is not None
    np.testing.assert_array_equal(source.labels, LABELS)
    test = open_source(str(tmp_path / f"t10k-images-idx3-ubyte{suffix}"))
    assert test.labels is not None
    np.testing.assert_array_equal(test.labels, LABELS[::-1])


def test_idx_images_need_no_labels_but_those_there_are_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx_from_array(np.ascontiguousarray(PIXELS[..., 0])))
    assert open_source(str(path)).labels is None
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_from_array(LABELS[:5].astype(np.uint8)))
    with pytest.raises(BadInput, match="expected a label for each of 6 images"):
        open_source(str(path))
    with pytest.raises(BadInput, match=re.escape(f"{labels}: expected images of shape (n, height, width), got (5,)")):
        open_source(str(labels))


def test_built_in_is_the_training_split() -> None:
    source, train = open_source("built-in"), built_in("train")
    assert (source.name, source.count, source.classes) == (train.name, 1000, train.classes)


def test_what_is_not_there_or_holds_no_pictures_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"nothing does not exist; give a folder of pictures, an \.npz, an IDX file, or built-in"
    ):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match=r"holds no pictures; expected files such as \.jpg, \.jpeg, \.png, or"):
        open_source(str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("no picture")
    with pytest.raises(BadInput, match=r"holds no pictures; expected files such as \.jpg, \.jpeg, \.png, or"):
        open_source(str(tmp_path))
    with pytest.raises(BadInput, match="expected an IDX file of unsigned bytes"):
        open_source(str(tmp_path / "sub" / "notes.txt"))


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    tree(tmp_path / "kept")
    (tmp_path / "subset").mkdir()
    for name in ("cats", "dogs", "more"):  # two links to one folder are two classes
        (tmp_path / "subset" / name).symlink_to(
            tmp_path / "kept" / ("dogs" if name == "dogs" else "cats"), target_is_directory=True
        )
    source = open_source(str(tmp_path / "subset"))
    assert (source.count, source.classes) == (3, ("cats", "dogs", "more"))


@pytest.mark.parametrize(
    "links",
    [{"cats/itself": "cats"}, {"cats/up": "."}, {"cats/over": "dogs", "dogs/back": "cats"}],
    ids=["self", "up", "two"],
)
def test_links_that_lead_back_are_refused(links: dict[str, str], tmp_path: Path) -> None:
    tree(tmp_path)
    for place, target in links.items():
        (tmp_path / place).symlink_to(tmp_path / target, target_is_directory=True)
    with pytest.raises(
        BadInput,
        match=r"--data: .*(itself|up|over/back|back/over) leads back to a folder that it lies in; remove that link",
    ):
        open_source(str(tmp_path))


def test_hidden_files_and_folders_are_no_pictures(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / ".ipynb_checkpoints" / "one.png").write_bytes(b"no picture")
    (tmp_path / "data" / "cats" / "._one.png").write_bytes(b"what a Mac leaves behind")
    source = open_source(str(tmp_path / "data"))
    assert (source.names, source.classes) == (("cats/one.png", "dogs/one.png"), ("cats", "dogs"))


@pytest.mark.parametrize(
    ("data", "said"),
    [("", "expected something for --data, got nothing"), (" ", "got nothing"), ("PICTURE", "name the folder")],
)
def test_what_is_no_source_is_told(data: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        open_source(data.replace("PICTURE", str(tree(tmp_path) / "cats" / "one.png")))


# --- what is left out ---


def test_what_is_no_picture_is_counted_by_suffix_and_classes_without_one_are_named(tmp_path: Path) -> None:
    tree(tmp_path)
    for name in ("cats/a.txt", "cats/b.TXT", "dogs/c.svg", "dogs/README", "notes.txt"):
        (tmp_path / name).write_text("no picture")
    assert open_source(str(tmp_path)).left_out == (
        f"{tmp_path}: 3 .txt, 1 .svg, 1 without a suffix, which are no pictures",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "drawings" / "deeper").mkdir(parents=True)
    (tmp_path / "drawings" / "deeper" / "a.svg").write_text("no picture")
    source = open_source(str(tmp_path))
    assert source.classes == ("cats", "dogs")
    assert source.left_out[1:] == (f"{tmp_path}: 2 class folders without a picture: drawings, empty",)
    assert source.subset(np.array([0])).left_out == source.left_out
    for place in range(9):
        (tmp_path / f"x.{place}").write_text("no picture")
    assert (
        open_source(str(tmp_path))
        .left_out[0]
        .endswith("3 .txt, 2 .svg, 1 .0, 1 .1 and 8 others, which are no pictures")
    )


def test_where_there_is_no_picture_what_there_is_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.psd").write_text("no picture")
    with pytest.raises(BadInput, match=r"holds no pictures; expected files such as \.jpg, .*, got 1 \.psd"):
        open_source(str(tmp_path))


def test_arrays_beside_pictures_are_not_taken_for_pictures(tmp_path: Path) -> None:
    tree(tmp_path)
    np.save(tmp_path / "labels.npy", LABELS)
    source = open_source(str(tmp_path))
    assert (source.count, source.classes) == (2, ("cats", "dogs"))
    assert source.left_out == (f"{tmp_path}: 1 .npy, which are no pictures",)


# --- what is chosen ---


def labelled(labels: NDArray[np.int64] | None, count: int) -> ImageSource:
    return ImageSource("set", count, lambda place: Image.new("L", (1, 1), place), labels)


@pytest.mark.parametrize("count", [1, 30, 31, 97, 1000])
@pytest.mark.parametrize("with_labels", [False, True], ids=["bare", "labelled"])
def test_what_is_chosen_is_ascending_distinct_and_decided_by_the_seed(count: int, with_labels: bool) -> None:
    source = labelled(np.arange(1000) % 10 if with_labels else None, 1000)
    places = choose_evenly(source, count, 0)
    assert places.dtype == np.int64
    assert len(places) == count
    assert (np.diff(places) > 0).all()
    assert places.min() >= 0
    assert places.max() < 1000
    np.testing.assert_array_equal(choose_evenly(source, count, 0), places)
    if count < 1000:
        assert choose_evenly(source, count, 1).tolist() != places.tolist()


def test_as_many_of_each_class_are_chosen_as_can_be() -> None:
    labels = np.repeat([0, 1, 2, 3], [5, 900, 90, 5])
    source = labelled(labels, 1000)
    for count in (8, 20, 37, 100, 400):
        chosen = np.bincount(labels[choose_evenly(source, count, 0)], minlength=4)
        assert chosen.sum() == count
        for one, there in zip(chosen, (5, 900, 90, 5), strict=True):
            assert one == there or one >= chosen.max() - 1


def test_more_than_there_are_gives_all_and_a_choice_is_spread_over_the_set() -> None:
    source = labelled(None, 500)
    np.testing.assert_array_equal(choose_evenly(source, 9999, 3), np.arange(500))
    assert 200 < choose_evenly(source, 100, 3).mean() < 300


def test_chosen_pictures_keep_their_labels_and_can_be_chosen_from_again() -> None:
    source = labelled(np.arange(50) * 2, 50)
    part = source.subset(np.array([3, 10, 40])).subset(np.array([2, 0]))
    assert part.count == 2
    assert part.labels is not None
    assert part.labels.tolist() == [80, 6]
    assert [part.image(place).getpixel((0, 0)) for place in range(2)] == [40, 3]
