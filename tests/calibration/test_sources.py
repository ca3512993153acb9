"""What `--data` may name: folders, trees, archives and IDX files, in every kind of picture; and what is chosen from them."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource, built_in, check_channels, choose_evenly, open_source, with_channels
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
GREY = Preprocess(8, (8, 8), "bilinear", True, (0.5,), (0.25,))
COLOUR = Preprocess(8, (8, 8), "bilinear", True, (0.5,) * 3, (0.25,) * 3)


def idx_from_array(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape) + array.tobytes()


def pictures(source: ImageSource) -> NDArray[np.uint8]:
    return np.stack([np.asarray(source.image(place)) for place in range(source.count)])


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


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labelled", "bare"])
def test_an_archive_gives_its_images_and_perhaps_labels(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None, tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **({"images": pixels} if labels is None else {"images": pixels, "labels": labels.astype(np.uint8)}))  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    source = open_source(str(path))
    np.testing.assert_array_equal(pictures(source), pixels)
    if labels is None:
        assert source.labels is None
    else:
        assert source.labels is not None
        np.testing.assert_array_equal(source.labels, labels)
        assert source.labels.dtype == np.int64


BAD_ARCHIVES = {
    "floats": ({"images": PIXELS / 255}, "got images float64 (6, 10, 12, 3)"),
    "no images": ({"pixels": PIXELS}, "got pixels uint8 (6, 10, 12, 3)"),
    "nothing": ({}, "got nothing"),
    "channels first": ({"images": PIXELS.transpose(0, 3, 1, 2)}, "got images uint8 (6, 3, 10, 12)"),
    "one image": ({"images": PIXELS[0, :, :, 0]}, "got images uint8 (10, 12)"),
    "labels of five": (
        {"images": PIXELS, "labels": LABELS[:5]},
        "expected a label for each of 6 images, got labels of shape (5,)",
    ),
    "one-hot labels": (
        {"images": PIXELS, "labels": np.eye(3)[LABELS]},
        "expected a label for each of 6 images, got labels of shape (6, 3)",
    ),
    "words for labels": (
        {"images": PIXELS, "labels": LABELS.astype(str)},
        "expected labels of whole numbers, not negative, got",
    ),
    "fractions for labels": (
        {"images": PIXELS, "labels": LABELS + 0.5},
        "expected labels of whole numbers, not negative, got",
    ),
    "negative labels": (
        {"images": PIXELS, "labels": LABELS - 1},
        "expected labels of whole numbers, not negative, got",
    ),
    "empty": ({"images": PIXELS[:0]}, "holds no pictures, or empty ones"),
    "no rows": ({"images": PIXELS[:, :0]}, "holds no pictures, or empty ones"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_an_archive_of_something_else_is_refused_with_what_it_holds(case: str, tmp_path: Path) -> None:
    arrays, says = BAD_ARCHIVES[case]
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        open_source(str(path))
    assert str(path) in str(refused.value)


def damaged_archives() -> dict[str, bytes]:
    import io

    whole, array = io.BytesIO(), io.BytesIO()
    np.savez_compressed(whole, images=PIXELS)
    np.save(array, PIXELS)
    data = whole.getvalue()
    middle = len(data) // 2
    objects = io.BytesIO()
    np.savez(objects, images=np.array([{}], object))
    return {
        "empty": b"",
        "text": b"images",
        "cut short": data[:middle],
        "flipped": data[:middle] + bytes([byte ^ 0xFF for byte in data[middle : middle + 20]]) + data[middle + 20 :],
        "a lone array": array.getvalue(),
        "pickled objects": objects.getvalue(),
    }


@pytest.mark.parametrize("damage", damaged_archives())
def test_a_damaged_archive_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(damaged_archives()[damage])
    with pytest.raises(BadInput, match=re.escape(str(path))):
        open_source(str(path))


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
    with pytest.raises(BadInput, match=r"holds no pictures; expected \.jpg \.jpeg \.png"):
        open_source(str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("no picture")
    with pytest.raises(BadInput, match=r"holds no pictures; expected \.jpg \.jpeg \.png"):
        open_source(str(tmp_path))
    with pytest.raises(BadInput, match="expected an IDX file of unsigned bytes"):
        open_source(str(tmp_path / "sub" / "notes.txt"))


def smooth(mode: str) -> Image.Image:
    """The same soft ramp in any mode."""
    ramp = np.add.outer(np.arange(40) * 4, np.arange(30) * 3).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    grey = Image.fromarray(ramp)
    if mode == "P":
        image = grey.convert("P")
        image.putpalette([value for level in range(256) for value in (level,) * 3])
        return image
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


FORMATS = {
    "jpg": ("L", "RGB", "CMYK"),
    "jpeg": ("L", "RGB", "CMYK"),
    "png": ("L", "LA", "RGB", "RGBA", "P", "I;16"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("L", "RGB", "P"),
    "tif": ("L", "RGB", "RGBA", "CMYK", "P", "I;16"),
    "tiff": ("L", "RGB", "RGBA", "CMYK", "P", "I;16"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in FORMATS.items() for mode in modes])
@pytest.mark.parametrize("upper", [False, True], ids=["", "upper case"])
def test_every_format_and_mode_is_the_same_picture(suffix: str, mode: str, upper: bool, tmp_path: Path) -> None:
    image = smooth(mode)
    assert image.mode == mode
    path = tmp_path / f"a.{suffix.upper() if upper else suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {"quality": 98} if suffix.startswith("jp") else {}))
    source = open_source(str(tmp_path))
    for preprocess in (GREY, COLOUR):
        np.testing.assert_allclose(preprocess(source.image(0)), preprocess(smooth("L")), atol=0.04)


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise
    smooth("L").save(tmp_path / "a.png", exif=exif)
    assert open_source(str(tmp_path)).image(0).size == (40, 30)
    assert smooth("L").size == (30, 40)


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


def tree(folder: Path) -> Path:
    """Two classes of a picture each."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(folder / name / "one.png")
    return folder


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


# --- what is left out, and what has other channels ---


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
    with pytest.raises(BadInput, match=r"holds no pictures; expected \.jpg .*, got 1 \.psd"):
        open_source(str(tmp_path))


BANDS = np.random.default_rng(1).integers(0, 256, (6, 10, 12, 13), np.uint8)


def many(channels: int) -> Preprocess:
    return Preprocess(8, (8, 8), "bilinear", True, (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("kind", ["npz", "npy", "folder", "tree"])
def test_arrays_of_any_number_of_channels_are_pictures(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bands.{kind}"
    if kind == "npz":
        np.savez(path, images=BANDS, labels=LABELS)
    elif kind == "npy":
        np.save(path, BANDS)
    else:
        for place, array in enumerate(BANDS):
            parent = path / str(LABELS[place]) if kind == "tree" else path
            parent.mkdir(parents=True, exist_ok=True)
            np.save(parent / f"{place}.npy", array)
    source = open_source(str(path))
    order = np.argsort(LABELS, kind="stable") if kind == "tree" else np.arange(6)
    assert (source.labels is not None) == (kind in ("npz", "tree"))
    for one in (source, source.subset(np.arange(6))):
        np.testing.assert_array_equal(np.stack([np.asarray(one.picture(place)) for place in range(6)]), BANDS[order])
    check_channels(source, many(13))
    for channels in (1, 3, 4):
        with pytest.raises(
            BadInput, match=re.escape(str(path)) + ": expected pictures of .*, as the model takes, got 13 channels"
        ):
            check_channels(source, many(channels))
    with pytest.raises(BadInput, match="expected pictures in grey or colour, got 13 channels"):
        source.image(0)


def test_pictures_with_transparency_are_of_four_channels_and_the_first_that_can_be_read_decides(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"damaged")
    Image.fromarray(BANDS[0, :, :, :4], "RGBA").save(tmp_path / "1.png")
    check_channels(open_source(str(tmp_path)), many(4))
    check_channels(open_source(str(tmp_path)), many(3))
    with pytest.raises(BadInput, match="expected pictures of 6 channels, as the model takes, got pixels of mode RGBA"):
        check_channels(open_source(str(tmp_path)), many(6))


def test_arrays_beside_pictures_are_not_taken_for_pictures(tmp_path: Path) -> None:
    tree(tmp_path)
    np.save(tmp_path / "labels.npy", LABELS)
    source = open_source(str(tmp_path))
    assert (source.count, source.classes) == (2, ("cats", "dogs"))
    assert source.left_out == (f"{tmp_path}: 1 .npy, which are no pictures",)


def test_random_weights_see_another_picture_in_each_channel() -> None:
    train = built_in("train")
    source = with_channels(train, 4)
    picture = np.asarray(source.picture(990))
    assert picture.shape == (28, 28, 4)
    assert len({picture[..., channel].tobytes() for channel in range(4)}) == 4
    np.testing.assert_array_equal(picture[..., 0], np.asarray(train.image(990)))
    assert source.labels is None
