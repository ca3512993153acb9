"""`resnet-deploy eval`: the figures, ImageNet's layouts, going on after an interruption, and every kind of data that cannot be evaluated on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.data import FASHION_MNIST_CLASSES, built_in, open_source
from exporter import ExportPlan, export
from exporter.graph.pixel_input import with_uint8_input
from exporter.verification.accuracy.evaluate import Evaluation, EvaluationData, evaluate
from exporter.verification.accuracy.resume_file import EvaluationKey, open_resume_file
from runtimes import Bundle, open_runtime
from runtimes.errors import BadInput, PlanError
from runtimes.parity.compare import wilson_interval
from runtimes.specs import BatchRange

SYNSETS = tuple(f"n{place * 7 % 10:08}" for place in range(10))  # not in sorted order
FOLDERS = tuple(name.replace("/", "_") for name in FASHION_MNIST_CLASSES)
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from exporter.cli.deploy import main; main()"


@pytest.fixture
def bundle(exported: Path) -> Path:
    return exported


@pytest.fixture(scope="module")
def imagenet_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand classes at 32 pixels, without labels."""
    plan = ExportPlan(
        "resnet18", tmp_path_factory.mktemp("eval") / "resnet18", weights="random", image_size=(32, 32), reference=False
    )
    return export(plan).folder


@pytest.fixture
def run(deploy: Any) -> Any:
    def call(bundle: Path, *arguments: object) -> Any:
        return deploy("eval", bundle, *arguments)

    return call


def counts(answer: dict[str, Any]) -> dict[str, Any]:
    """All figures but the speed."""
    return {name: value for name, value in answer.items() if not name.endswith("images_per_s")}


def measured(bundle: Bundle, data: EvaluationData) -> Evaluation:
    with open_runtime(bundle) as runtime:
        found = evaluate(bundle, runtime, data.source(bundle)[0])
    return replace(found, model_images_per_s=0, images_per_s=0)


def edited(bundle: Path, **changes: Any) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document.update(changes)
    (bundle / "manifest.json").write_text(json.dumps(document))


def replace_model(bundle: Path, model: onnx.ModelProto) -> None:
    data = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edited(bundle, files={**files, "model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def without_labels(bundle: Path, folder: Path) -> Path:
    """The same bundle, exported from a checkpoint without class names."""
    copy = copied(bundle, folder)
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edited(copy, files={name: facts for name, facts in files.items() if name != "labels.txt"})
    return copy


def flat_folder(folder: Path, count: int = 40) -> list[int]:
    """Test pictures as `val/ILSVRC2012_val_00000001.JPEG` ..., and their labels."""
    source = built_in("test")
    assert source.labels is not None
    (folder / "val").mkdir()
    for place in range(count):
        source.image(place).save(folder / "val" / f"ILSVRC2012_val_{place + 1:08}.JPEG", quality=95)
    return [int(label) for label in source.labels[:count]]


def tree(folder: Path, names: tuple[str, ...], count: int = 40) -> Path:
    """Test pictures in a folder for each class."""
    source = built_in("test")
    assert source.labels is not None
    for place in range(count):
        path = folder / "tree" / names[source.labels[place]] / f"{place:04}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(place).save(path, quality=95)
    return folder / "tree"


# --- the figures ---


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_the_built_in_test_images_give_the_accuracy_that_the_export_measured(
    run: Any, bundle: Path, backend: str
) -> None:
    shown = run(bundle, "--data", "built-in", "--backend", backend, "--json", "--quiet")
    assert (shown.code, shown.err) == (0, "")
    answer = shown.json
    accuracy = Bundle.open(bundle).manifest.accuracy
    assert accuracy is not None
    assert (answer["images"], answer["top1"]["correct"], answer["top1"]["share"]) == (2000, 1889, accuracy.top1)
    assert answer["top1"]["interval"] == list(accuracy.interval)
    assert answer["top5"]["correct"] >= 1990
    assert (answer["backend"], answer["provider"], answer["data"], answer["matched"]) == (
        backend,
        "cpu",
        "built-in (test)",
        "by name",
    )
    assert answer["model_images_per_s"] > answer["images_per_s"] > 0


def test_counts_are_those_worked_out_from_the_logits(bundle: Path) -> None:
    opened, source = Bundle.open(bundle), built_in("test")
    assert source.labels is not None
    with open_runtime(opened) as runtime:
        inputs = opened.manifest.preprocess.batch([source.image(place) for place in range(source.count)])
        logits = runtime.run({"input": inputs})["logits"]
    first = logits.argmax(1)
    pairs = Counter(
        (int(label), int(given)) for label, given in zip(source.labels, first, strict=True) if label != given
    )
    found = measured(opened, EvaluationData("built-in"))
    assert [one.top1.images for one in found.recall] == np.bincount(source.labels).tolist()
    assert [one.top1.correct for one in found.recall] == [
        int((first[source.labels == label] == label).sum()) for label in range(10)
    ]
    assert found.mean_recall == pytest.approx(
        np.mean([(first[source.labels == label] == label).mean() for label in range(10)])
    )
    assert found.top5.correct == int((np.argsort(-logits, 1, "stable")[:, :5] == source.labels[:, None]).any(1).sum())
    assert found.top5.interval == wilson_interval(found.top5.correct, 2000)
    names = FASHION_MNIST_CLASSES
    assert {(one.label, one.predicted): one.images for one in found.confused} == {
        (names[a], names[b]): n for (a, b), n in pairs.items()
    }
    assert [one.images for one in found.confused] == sorted(pairs.values(), reverse=True)


def test_another_batch_changes_no_count(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    data = EvaluationData("built-in", images=150)
    found = measured(opened, data)
    assert [one.top1.images for one in found.recall] == [15] * 10
    for batch in (BatchRange(1, 1, 1), BatchRange(1, 7, 64), BatchRange(1, 64, 64)):
        assert measured(replace(opened, manifest=replace(opened.manifest, batch=batch)), data) == found


def test_a_model_that_takes_pixels_is_fed_pixels(run: Any, bundle: Path, tmp_path: Path) -> None:
    copy, manifest = copied(bundle, tmp_path), Bundle.open(bundle).manifest
    replace_model(copy, with_uint8_input(onnx.load(copy / "model.onnx"), manifest.preprocess))
    edited(copy, inputs=[{"name": "input", "dtype": "uint8", "shape": ["batch", 28, 28, 1]}])
    assert run(copy, "--data", "built-in", "--json").json["top1"]["correct"] == 1889


def test_the_summary_tells_what_the_json_does(run: Any, bundle: Path, tmp_path: Path) -> None:
    options = ("--data", "built-in", "--worst", "2", "--resume", tmp_path / "journal")
    shown = run(bundle, *options)
    lines = shown.out.splitlines()
    assert lines[0] == f"bundle       {bundle}, fp16 on onnxruntime (cpu)"
    assert lines[1] == "data         built-in (test), 2000 images, 10 classes, told by name"
    assert lines[2] == "top-1        94.45% (95 % interval 93.36% to 95.37%), 1889 of 2000"
    assert [line.split()[0] for line in lines[3:]] == [
        "top-5",
        "recall",
        "83.25%",
        "91.32%",
        "confused",
        "7.61%",
        "6.00%",
        "images/s",
    ]
    assert "15 of 197  Shirt taken for T-shirt/top" in lines[8]
    assert "evaluate" in shown.err
    answer = run(bundle, *options, "--json").json
    assert [(one["label"], one["predicted"], one["images"]) for one in answer["confused"]] == [
        ("Shirt", "T-shirt/top", 15),
        ("T-shirt/top", "Shirt", 12),
    ]
    assert len(answer["recall"]) == 10


def test_a_least_top1_ends_with_4_and_says_whether_the_interval_holds_it(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    options = ("--data", "built-in", "--resume", tmp_path / "journal", "--min-top1")
    assert run(bundle, *options, "0.9445").code == 0
    near, far = (run(bundle, *options, least) for least in (0.95, 0.99))
    assert (near.code, far.code) == (4, 4)
    assert (
        "expected a top-1 of at least 95.00%, got 94.45% (95 % interval 93.36% to 95.37%, which holds what was expected"
        in near.err
    )
    assert "at least 99.00%, got 94.45% (95 % interval 93.36% to 95.37%, all of it below)" in far.err
    assert "94.45%" in far.out


def test_fashion_mnists_folder_means_its_test_images(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("t10k", 2)):
        header = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 4, 0, 0, 0, 4])
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(header + bytes(16 * count))
    assert (open_source(str(tmp_path)).count, open_source(str(tmp_path), split="test").count) == (3, 2)


def test_a_folder_with_one_half_of_fashion_mnist_is_not_taken_for_the_other(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]))
    shown = run(bundle, "--data", tmp_path)
    assert (shown.code, "expected t10k-images-idx3-ubyte in" in shown.error) == (2, True)


# --- ImageNet's layouts ---


def test_a_tree_of_a_thousand_wordnet_ids_is_in_their_sorted_order(
    run: Any, imagenet_like: Path, tmp_path: Path
) -> None:
    """Half of the pictures lie where the model itself would put them."""
    chance = np.random.default_rng(1)
    synsets = sorted(f"n{number:08}" for number in chance.permutation(10**7)[:1000])
    opened = Bundle.open(imagenet_like)
    pictures = []
    for place in range(1000):
        path = tmp_path / f"{place}.JPEG"
        Image.fromarray(chance.integers(0, 256, (3, 3, 3), np.uint8)).resize((40, 36), Image.Resampling.BICUBIC).save(
            path
        )
        pictures.append(Image.open(path))
    with open_runtime(opened) as runtime:
        given = runtime.run({"input": opened.manifest.preprocess.batch(pictures)})["logits"].argmax(1)
    folders = [synsets[label] for label in given[:500]]
    folders += [synset for synset in synsets if synset not in folders]
    for place, synset in enumerate(folders):
        target = tmp_path / "val" / synset / f"{place}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        if place < 1000:
            shutil.move(tmp_path / f"{place}.JPEG", target)
        else:
            shutil.copy(tmp_path / "val" / folders[0] / "0.JPEG", target)
    by_place = {synset: place for place, synset in enumerate(synsets)}
    expected = sum(by_place[synset] == given[place if place < 1000 else 0] for place, synset in enumerate(folders))
    assert expected >= 500
    answer = run(imagenet_like, "--data", tmp_path / "val", "--json").json
    assert (answer["images"], len(answer["recall"]), answer["top1"]["correct"]) == (len(folders), 1000, expected)
    assert answer["matched"] == "by the sorted order of their WordNet ids"
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{synset} a name, another\n" for synset in synsets))
    shutil.rmtree(tmp_path / "val" / next(synset for synset in synsets if synset not in folders[:500]))
    few = run(imagenet_like, "--data", tmp_path / "val")
    assert (few.code, "give resnet-deploy eval --synsets with the model's classes in order" in few.error) == (2, True)
    listed = run(
        imagenet_like, "--data", tmp_path / "val", "--synsets", tmp_path / "LOC_synset_mapping.txt", "--json"
    ).json
    assert (listed["images"], listed["matched"]) == (len(folders) - 1, "by --synsets")
    assert expected - 1 <= listed["top1"]["correct"] <= expected


@pytest.mark.parametrize("form", ["wordnet ids", "numbers", "names", "links"])
def test_each_kind_of_tree_gives_the_same_figures(run: Any, bundle: Path, tmp_path: Path, form: str) -> None:
    names = {"wordnet ids": SYNSETS, "numbers": tuple(map(str, range(10)))}.get(form, FOLDERS)
    data = tree(tmp_path, names)
    if form == "links":
        (tmp_path / "real").mkdir()
        for path in list(data.iterdir()):
            path.rename(tmp_path / "real" / path.name)
            path.symlink_to(tmp_path / "real" / path.name)
    (tmp_path / "synsets.txt").write_text("\n".join(SYNSETS))
    options = ("--synsets", tmp_path / "synsets.txt") if form == "wordnet ids" else ()
    answer = run(bundle, "--data", data, *options, "--json").json
    source = built_in("test")
    assert source.labels is not None
    assert (answer["images"], len(answer["recall"])) == (40, 10)
    assert [one["top1"]["images"] for one in answer["recall"]] == np.bincount(source.labels[:40]).tolist()
    assert answer["top1"]["correct"] >= 36
    assert [one["name"] for one in answer["recall"]] == list(FASHION_MNIST_CLASSES)


@pytest.mark.parametrize("form", ["numbers", "names", "LOC_val_solution.csv", "a class a line"])
def test_each_form_of_a_labels_file_gives_the_same_figures(run: Any, bundle: Path, tmp_path: Path, form: str) -> None:
    labels = flat_folder(tmp_path)
    order = random.Random(0).sample(range(40), 40)
    file, options = tmp_path / "val.txt", ["--data-labels", tmp_path / "val.txt"]
    if form == "numbers":
        lines = [f"ILSVRC2012_val_{place + 1:08}.JPEG {labels[place]}" for place in order]
    elif form == "names":
        lines = [f"ILSVRC2012_val_{place + 1:08}.JPEG\t{FASHION_MNIST_CLASSES[labels[place]]}" for place in order]
    elif form == "a class a line":
        lines = [str(label) for label in labels]
    else:
        lines = [
            "ImageId,PredictionString",
            *(f"ILSVRC2012_val_{place + 1:08},{SYNSETS[labels[place]]} 85 1 499 272 " for place in order),
        ]
        (tmp_path / "index.json").write_text(
            json.dumps({str(place): [name, "words"] for place, name in enumerate(SYNSETS)})
        )
        options += ["--synsets", tmp_path / "index.json"]
    file.write_text("\n".join(lines) + "\n")
    answer = run(bundle, "--data", tmp_path / "val", *options, "--json").json
    assert [one["top1"]["images"] for one in answer["recall"]] == np.bincount(labels).tolist()
    assert (answer["images"], answer["top1"]["correct"] >= 36) == (40, True)


def test_a_few_of_the_classes_are_evaluated_and_said_to_be_few(run: Any, bundle: Path, tmp_path: Path) -> None:
    data = tree(tmp_path, tuple(name.replace("/", " ") for name in FASHION_MNIST_CLASSES))
    for name in FASHION_MNIST_CLASSES[1:7]:
        shutil.rmtree(data / name)
    shown = run(bundle, "--data", data)
    assert "4 of the model's 10 classes, told by name, letter case and punctuation aside" in shown.out


def test_pictures_are_chosen_evenly_and_always_the_same(run: Any, bundle: Path) -> None:
    answer, again = (run(bundle, "--data", "built-in", "--images", 30, "--json").json for _ in range(2))
    assert [one["top1"]["images"] for one in answer["recall"]] == [3] * 10
    assert counts(again) == counts(answer)
    shown = run(bundle, "--data", "built-in", "--images", 2001)
    assert (shown.code, "--images asks for 2001, but built-in (test) has 2000" in shown.error) == (2, True)


# --- what cannot be evaluated ---


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
    assert "10 classes, told by the sorted order of their names" in run(nameless, "--data", data).out
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
    model = onnx.load(copy / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(bias), np.nan), bias.name))
    replace_model(copy, model)
    shown = run(copy, "--data", "built-in")
    assert (shown.code, "logits that are not finite" in shown.error) == (1, True)


# --- going on ---


def test_a_journal_cut_anywhere_gives_the_figures_of_one_run(run: Any, bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    options = ("--data", tree(tmp_path, tuple(map(str, range(10))), 120), "--json", "--resume", journal)
    (sorted((tmp_path / "tree").rglob("*.JPEG"))[60]).write_bytes(b"junk")
    whole = run(bundle, *options).json
    assert counts(whole) == counts(run(bundle, *options[:3]).json)
    data = journal.read_bytes()
    header = data.index(b"\n") + 1
    chance = random.Random(3)
    for cut in (header, header + 1, len(data) - 1, len(data), *(chance.randrange(header, len(data)) for _ in range(4))):
        journal.write_bytes(data[:cut])
        assert counts(run(bundle, *options).json) == counts(whole)
        after = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
        assert [one["rows"] for one in after] == [json.loads(line)["rows"] for line in data.splitlines()[1:]]


def test_a_finished_journal_is_kept_and_asks_the_model_nothing(run: Any, bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    options = ("--data", "built-in", "--images", 100, "--resume", journal)
    first = run(bundle, *options)
    data = journal.read_bytes()
    assert run(bundle, *options).out == first.out  # the speed too: nothing was measured again
    assert journal.read_bytes() == data


@pytest.mark.parametrize("what", ["backend", "images", "data", "bundle"])
def test_a_journal_of_another_evaluation_is_refused_with_what_differs(
    run: Any, bundle: Path, tmp_path: Path, what: str
) -> None:
    journal = tmp_path / "journal"
    data = tree(tmp_path, tuple(map(str, range(10))))
    run(bundle, "--data", data, "--resume", journal)
    before = journal.read_bytes()
    options: list[object] = ["--data", data, "--resume", journal]
    if what == "backend":
        options += ["--backend", "pytorch"]
    elif what == "images":
        options += ["--images", 20]
    elif what == "data":
        path = next(data.rglob("*.JPEG"))
        path.rename(path.with_name("other.JPEG"))
    else:
        bundle = copied(bundle, tmp_path)
        edited(bundle, batch={"min": 1, "opt": 4, "max": 8})
    shown = run(bundle, *options)
    assert (shown.code, "is of another evaluation" in shown.error, f"{what} " in shown.error) == (2, True, True)
    assert journal.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_as_it_is(run: Any, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    options = ("--data", "built-in", "--images", 20, "--resume")
    for text in ("my notes\n", "my notes", "{}\n"):
        file.write_text(text)
        shown = run(bundle, *options, file)
        assert (shown.code, "was not written by an evaluation" in shown.error, file.read_text()) == (2, True, text)
    file.write_text("")
    assert run(bundle, *options, file).code == 0
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged, said in (
        (lines[1][:20] + b"\n", "line 2 is damaged"),
        (lines[2], "line 2 does not go on where the one before ended"),
    ):
        file.write_bytes(lines[0] + damaged + lines[2])
        shown = run(bundle, *options, file)
        assert (shown.code, said in shown.error) == (2, True)


def test_a_journal_that_cannot_be_written_is_said_in_one_line(run: Any, bundle: Path, tmp_path: Path) -> None:
    options = ("--data", "built-in", "--images", 20, "--resume")
    assert "there is no folder" in run(bundle, *options, tmp_path / "nowhere" / "journal").error
    assert run(bundle, *options, tmp_path).code == 2
    journal = tmp_path / "journal"
    run(bundle, *options, journal)
    with journal.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shown = run(bundle, *options, journal)
    assert (shown.code, "another evaluation is writing" in shown.error) == (2, True)


KEY = EvaluationKey("bundle", "file", "onnxruntime", "cpu", "1:8:32", 10, "data")


def test_of_two_evaluations_that_start_at_once_one_keeps_the_journal_and_the_other_is_told(tmp_path: Path) -> None:
    start, end = Barrier(2), Barrier(2)

    def work(path: Path) -> bool:
        start.wait(10)
        try:
            with open_resume_file(path, KEY):
                end.wait(10)
            return True
        except PlanError:
            end.wait(10)
            return False

    with ThreadPoolExecutor(2) as threads:
        for number in range(50):
            assert sorted(threads.map(work, [tmp_path / str(number)] * 2)) == [False, True]


def test_a_journal_whose_first_line_was_torn_is_begun_again(tmp_path: Path) -> None:
    with open_resume_file(tmp_path / "journal", KEY):
        whole = (tmp_path / "journal").read_bytes()
    for cut in (0, 1, len(whole) - 1):
        (tmp_path / "journal").write_bytes(whole[:cut])
        with open_resume_file(tmp_path / "journal", KEY) as journal:
            assert list(journal.batches()) == []
        assert (tmp_path / "journal").read_bytes() == whole


def test_a_pipe_is_no_journal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is not a file; give another"), open_resume_file(tmp_path / "pipe", KEY):
        pytest.fail("there is none")


def test_a_full_disk_is_said_in_one_line_and_what_was_written_is_used(bundle: Path, tmp_path: Path, run: Any) -> None:
    journal = tmp_path / "journal"
    options = ["eval", str(bundle), "--data", "built-in", "--images", "300", "--resume", str(journal)]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); {MAIN}"
    done = subprocess.run([sys.executable, "-c", limited, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith(f"error: --resume: cannot write {journal}: ")) == (
        2,
        True,
    ), done.stderr
    assert "Traceback" not in done.stderr
    assert 3000 < journal.stat().st_size <= 4000
    assert counts(run(*options[1:], "--json").json) == counts(run(*options[1:6], "--json").json)


def test_ctrl_c_leaves_a_journal_that_is_gone_on_with(run: Any, bundle: Path, tmp_path: Path) -> None:
    source = built_in("test")
    places = np.resize(np.arange(2000), 4000)
    np.savez(
        tmp_path / "many.npz",
        images=np.stack([np.asarray(source.image(int(place))) for place in places]),
        labels=np.asarray(source.labels)[places],
    )
    journal = tmp_path / "journal"
    options = [str(bundle), "--data", str(tmp_path / "many.npz"), "--resume", str(journal)]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "eval", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.stat().st_size < 5000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: interrupted; ")
    assert last.endswith(f" of 4000 pictures are in {journal}, and the same command goes on from there")
    done = json.loads(journal.read_bytes().splitlines()[-1])["after"]
    assert 0 < done < 4000
    answer = run(*options, "--json").json
    assert (answer["images"], answer["top1"]["correct"]) == (4000, 2 * 1889)
