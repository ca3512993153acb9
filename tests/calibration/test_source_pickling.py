"""Sources of pictures in another process: what travels is where they are, never their pixels."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import LABELS, PIXELS, idx_from_array, tree
from PIL import Image

from calibration.annotations import with_labels
from calibration.classes import ModelClasses, match_source
from calibration.data import ImageSource, built_in, open_source, with_channels
from runtimes.errors import BadInput

LARGEST_PICKLE = 12_000
"""In bytes: less than two of the pictures of 60 x 100 pixels below, more than names and labels take."""
LARGE = np.random.default_rng(2).integers(0, 256, (6, 60, 100, 3), np.uint8)


def folder_of_classes(folder: Path) -> ImageSource:
    for place, label in enumerate(LABELS):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(LARGE[place]).save(folder / f"c{label}" / f"{place}.png")
    return open_source(str(folder))


def archive(folder: Path) -> ImageSource:
    np.savez(folder / "set.npz", images=LARGE, labels=LABELS)
    return open_source(str(folder / "set.npz"))


def array_file(folder: Path) -> ImageSource:
    np.save(folder / "set.npy", LARGE)
    return open_source(str(folder / "set.npy"))


def idx_file(folder: Path) -> ImageSource:
    (folder / "train-images-idx3-ubyte").write_bytes(idx_from_array(np.ascontiguousarray(LARGE[..., 0])))
    return open_source(str(folder))


SOURCES: dict[str, Callable[[Path], ImageSource]] = {
    "folder": folder_of_classes,
    "npz": archive,
    "npy": array_file,
    "idx": idx_file,
    "built-in": lambda folder: built_in("test").subset(np.arange(40, 52)),
    "of many channels": lambda folder: with_channels(built_in("train"), 5).subset(np.arange(6)),
}


def pixels_of(source: ImageSource) -> list[bytes]:
    return [np.asarray(source.picture(place)).tobytes() for place in range(source.count)]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_pickled_source_is_the_same_and_holds_no_pixels(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    for one in (source, source.subset(np.array([4, 0])), source.subset(np.array([5, 3, 1])).subset(np.array([2, 0]))):
        data = pickle.dumps(one)
        found = pickle.loads(data)
        assert len(data) < LARGEST_PICKLE
        assert (found.name, found.count, found.classes, found.names) == (one.name, one.count, one.classes, one.names)
        np.testing.assert_array_equal(found.labels, one.labels)
        assert pixels_of(found) == pixels_of(one)
        assert pickle.dumps(found) == data, "what was read stays out of it"


def test_labels_and_matched_classes_travel_along(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(f"c{label}" for label in LABELS))
    labelled = with_labels(folder_of_classes(tmp_path / "data"), tmp_path / "labels.txt")
    source, _ = match_source(labelled, ModelClasses(4, ("c2", "c1", "other", "c0")))
    found = pickle.loads(pickle.dumps(source))
    assert found.labels.tolist() == [0, 3, 1, 1, 3, 0]
    assert found.classes == ("c2", "c1", "other", "c0")
    assert pixels_of(found) == pixels_of(source)


def test_of_a_part_of_a_folder_only_its_own_names_travel(tmp_path: Path) -> None:
    source = folder_of_classes(tmp_path)
    data = pickle.dumps(source.subset(np.array([1])))
    assert source.names is not None
    assert source.names[1].encode() in data
    assert source.names[0].encode() not in data


def test_another_process_reads_a_source_by_its_paths(tmp_path: Path) -> None:
    source = archive(tmp_path)
    code = (
        "import pickle, sys; source = pickle.loads(sys.stdin.buffer.read()); "
        "sys.stdout.buffer.write(source.image(3).tobytes())"
    )
    read = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), stdout=subprocess.PIPE, check=True)
    assert read.stdout == LARGE[3].tobytes()


def test_a_name_that_is_no_text_is_found_again(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    Image.fromarray(PIXELS[0]).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    found = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    assert found.names == (r"caf\xe9.png",)
    assert pixels_of(found) == [PIXELS[0].tobytes()]


def test_an_array_file_that_is_another_one_by_then_is_told(tmp_path: Path) -> None:
    travelled = pickle.dumps(archive(tmp_path))
    np.savez(tmp_path / "set.npz", images=LARGE[:4])
    with pytest.raises(BadInput, match=r"set\.npz: expected images of shape \(6, .*, got \(4, 60, 100, 3\); leave it"):
        pickle.loads(travelled).image(0)
    (tmp_path / "set.npz").unlink()
    with pytest.raises(BadInput, match=r"cannot read .*set\.npz: No such file"):
        pickle.loads(travelled).image(0)


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(tree(tmp_path)))))
    (tmp_path / "dogs" / "one.png").unlink()
    assert source.image(0).size == (12, 10)
    with pytest.raises(BadInput, match=r"cannot read the picture .*dogs/one\.png: .*No such file"):
        source.image(1)


def test_a_picture_is_named_as_the_folder_was_given_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    source = open_source("data")
    (tmp_path / "data" / "dogs" / "one.png").write_bytes(b"spoilt")
    pickled = pickle.dumps(source.subset(np.arange(source.count)))
    monkeypatch.chdir("/")
    with pytest.raises(BadInput) as elsewhere:
        pickle.loads(pickle.dumps(pickle.loads(pickled))).picture(1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as here:
        source.picture(1)
    assert str(elsewhere.value) == str(here.value)
    assert "cannot read the picture data/dogs/one.png" in str(here.value)
