"""`resnet-deploy eval`: every kind of data that cannot be evaluated on, and pictures that are left out."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import FOLDERS, bundle_fixture, copied, edited, flat_folder, run_fixture, tree  # noqa: F401  # pytest finds them by their names
from PIL import Image
from spoilt import answer_nan


def without_labels(bundle: Path, folder: Path) -> Path:
    """The same bundle, exported from a checkpoint without class names."""
    copy = copied(bundle, folder)
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edited(copy, files={name: facts for name, facts in files.items() if name != "labels.txt"})
    return copy


def test_labels_that_do_not_match_are_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run(
        bundle, "--data", tree(tmp_path, ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"))
    )
    assert (
        shown.code,
        "among the model's 10 labels ('T-shirt/top', 'Trouser', 'Pullover', ...), got 10 others" in shown.error,
    ) == (2, True)


@pytest.mark.parametrize("data", ["root", "Root"])
def test_a_data_root_names_the_folder_to_give(run: Any, bundle: Path, tmp_path: Path, data: str) -> None:
    parts = {"root": ("train", "val", "test"), "Root": ("Testing", "TRAIN")}[data]
    right = {"root": "val", "Root": "Testing"}[data]
    tree(tmp_path, FOLDERS)
    for part in parts:
        shutil.copytree(tmp_path / "tree", tmp_path / data / part)
    shown = run(bundle, "--data", tmp_path / data)
    assert (shown.code, f"give one of them: --data {tmp_path / data / right}" in shown.error) == (2, True)
    assert run(bundle, "--data", tmp_path / data / right, "--json").json["images"] == 40


def test_another_number_of_classes_is_refused_where_there_are_no_names(run: Any, bundle: Path, tmp_path: Path) -> None:
    nameless = without_labels(bundle, tmp_path)
    data = tree(tmp_path, tuple("abcdefghij"))
    assert "10 classes, matched by the sorted order of their names" in run(nameless, "--data", data).out
    shutil.rmtree(data / "c")
    shown = run(nameless, "--data", data)
    assert (shown.code, "expected as many classes as the model's 10, got 9 ('a', 'b', 'd', ...)" in shown.error) == (
        2,
        True,
    )


def test_the_built_in_classes_are_in_their_own_order_where_the_bundle_has_no_names(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    assert run(without_labels(bundle, tmp_path), "--data", "built-in", "--json").json["top1"]["correct"] == 1889


def test_the_devkits_ground_truth_is_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    labels = flat_folder(tmp_path)
    (tmp_path / "truth.txt").write_text("".join(f"{label + 1}\n" for label in labels))
    shown = run(bundle, "--data", tmp_path / "val", "--data-labels", tmp_path / "truth.txt")
    assert (shown.code, "numbered 1 to 10, and nothing says in which order" in shown.error) == (2, True)


@pytest.mark.parametrize(
    "kind", ["missing", "none", "no labels", "unknown name", "unknown class", "missing picture", "lines"]
)
def test_a_data_set_that_is_none_or_a_labels_file_that_does_not_fit_is_refused(
    run: Any, bundle: Path, tmp_path: Path, kind: str
) -> None:
    flat_folder(tmp_path, 3)
    (tmp_path / "empty").mkdir()
    names = [f"ILSVRC2012_val_{place:08}.JPEG" for place in range(1, 4)]
    lines, said = {
        "unknown name": ([f"{name} 1" for name in [*names, "other.JPEG"]], "'other.JPEG' is no picture"),
        "unknown class": ([f"{name} Wolf" for name in names], "got 1 others ('Wolf')"),
        "missing picture": ([f"{name} 1" for name in names[:2]], f"got none for 1 of them ('{names[2]}')"),
        "lines": (["1", "2"], "got 2 lines that start with '1'"),
        "missing": ([], "does not exist"),
        "none": ([], "holds no pictures"),
        "no labels": ([], "expected a class for each picture"),
    }[kind]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    data = {"missing": "nowhere", "none": "empty"}.get(kind, "val")
    shown = run(bundle, "--data", tmp_path / data, *(("--data-labels", tmp_path / "labels.txt") if lines else ()))
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_a_bundle_of_features_is_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    edited(copy, outputs=[{"name": "features", "dtype": "float32", "shape": ["batch", 64]}])
    shown = run(copy, "--data", "built-in")
    assert (shown.code, "expected a classifier, got a model that gives features" in shown.error) == (2, True)


def test_a_backend_or_provider_that_is_not_here_is_named(run: Any, bundle: Path) -> None:
    shown = run(bundle, "--data", "built-in", "--backend", "tensorrt")
    assert (shown.code, "backend 'tensorrt' needs the package 'tensorrt'" in shown.error) == (3, True)
    assert run(bundle, "--data", "built-in", "--backend", "onnxruntim").code == 2
    assert run(bundle, "--data", "built-in", "--provider", "cuda").code == 3


def test_a_picture_that_cannot_be_read_is_said_counted_and_left_out(run: Any, bundle: Path, tmp_path: Path) -> None:
    data = tree(tmp_path, tuple(map(str, range(10))), 201)
    broken = sorted(data.rglob("*.JPEG"))[-1]  # behind the last whole batch
    whole = run(bundle, "--data", data, "--json").json
    broken.write_bytes(b"junk")
    shown = run(bundle, "--data", data, "--json")
    assert (whole["images"], shown.json["images"], len(shown.json["unreadable"])) == (201, 200, 1)
    assert str(broken) in shown.json["unreadable"][0]
    assert f"left out cannot read the picture {broken}" in shown.err
    assert "left out     1 that cannot be read: cannot read the picture" in run(bundle, "--data", data).out
    for path in sorted(data.rglob("*.JPEG"))[:2]:
        path.write_bytes(b"junk")
    shown = run(bundle, "--data", data)
    assert (shown.code, "3 of the 201 pictures cannot be read, more than 1 %" in shown.error) == (1, True)


def test_strips_and_bombs_among_the_pictures_end_nothing(run: Any, bundle: Path, tmp_path: Path) -> None:
    data = tree(tmp_path, tuple(map(str, range(10))), 200)
    strip, bomb = data / "0" / "strip.png", data / "0" / "bomb.png"
    Image.new("L", (60_000, 1), 99).save(strip)
    strip.rename(strip.with_suffix(".jpe"))  # what it is called does not matter
    Image.new("1", (8, 8)).save(bomb)
    head = b"IHDR" + struct.pack(">II", 60_000, 60_000) + bomb.read_bytes()[24:29]
    bomb.write_bytes(bomb.read_bytes()[:12] + head + struct.pack(">I", zlib.crc32(head)) + bomb.read_bytes()[33:])
    shown = run(bundle, "--data", data, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["images"] == 201
    assert [str(bomb) in reason for reason in shown.json["unreadable"]] == [True]


def test_what_is_no_picture_is_said_and_a_class_that_cannot_be_read_is_named(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    data = tree(tmp_path, tuple(map(str, range(10))), 198)
    (data / "0" / "notes.txt").write_text("no picture")
    (data / "1" / "drawing.SVG").write_text("no picture")
    for path in sorted((data / "3").iterdir())[1:]:
        path.unlink()
    next((data / "3").iterdir()).write_bytes(b"junk")
    shown = run(bundle, "--data", data, "--json")
    assert shown.code == 0, shown.err
    assert f"left out {data}: 1 .svg, 1 .txt, which are no pictures" in shown.err
    assert shown.json["left_out"] == [f"{data}: 1 .svg, 1 .txt, which are no pictures"]
    assert shown.json["unreadable"][-1].startswith("none of the pictures of class '")


def test_pictures_of_other_channels_than_the_models_are_refused_before_anything_runs(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bands.npz", images=np.zeros((20, 28, 28, 13), np.uint8), labels=np.zeros(20, np.int64))
    shown = run(bundle, "--data", tmp_path / "bands.npz")
    assert (shown.code, "expected pictures of grey or colour, as the model takes, got 13 channels" in shown.error) == (
        2,
        True,
    )


def test_logits_that_are_not_finite_end_it(run: Any, bundle: Path, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    answer_nan(copy)
    shown = run(copy, "--data", "built-in")
    assert (shown.code, "logits that are not finite" in shown.error) == (1, True)
