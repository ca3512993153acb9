"""`resnet-deploy eval` on ImageNet's layouts: trees of class folders, and flat folders with a labels file."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import FOLDERS, SYNSETS, bundle_fixture, counts, flat_folder, run_fixture, tree  # noqa: F401  # pytest finds them by their names
from PIL import Image

from calibration.data import FASHION_MNIST_CLASSES, built_in
from exporter import ExportPlan, export
from runtimes import Bundle, open_runtime


@pytest.fixture(scope="module")
def imagenet_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand classes at 32 pixels, without labels."""
    plan = ExportPlan(
        "resnet18", tmp_path_factory.mktemp("eval") / "resnet18", weights="random", image_size=(32, 32), reference=False
    )
    return export(plan).folder


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
    assert "4 of the model's 10 classes, matched by name, letter case and punctuation aside" in shown.out


def test_pictures_are_chosen_evenly_and_always_the_same(run: Any, bundle: Path) -> None:
    answer, again = (run(bundle, "--data", "built-in", "--images", 30, "--json").json for _ in range(2))
    assert [one["top1"]["images"] for one in answer["recall"]] == [3] * 10
    assert counts(again) == counts(answer)
    shown = run(bundle, "--data", "built-in", "--images", 2001)
    assert (shown.code, "--images asks for 2001, but built-in (test) has 2000" in shown.error) == (2, True)
