"""`resnet-deploy eval`: the figures, and a least top-1."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from eval_fixtures import bundle_fixture, copied, edited, run_fixture  # noqa: F401  # pytest finds them by their names
from spoilt import replace_file

from calibration.data import FASHION_MNIST_CLASSES, built_in, open_source
from exporter.graph.pixel_input import with_uint8_input
from exporter.verification.accuracy.evaluate import Evaluation, EvaluationData, evaluate
from exporter.verification.accuracy.worker import EvaluationWorker, shard_size
from runtimes import Bundle, open_runtime
from runtimes.parity.intervals import wilson_interval
from runtimes.specs import BatchRange


def measured(bundle: Bundle, data: EvaluationData) -> Evaluation:
    source = data.source(bundle)[0]
    with open_runtime(bundle) as runtime:
        found = evaluate(source, lambda threads: EvaluationWorker(bundle, runtime, source, threads), shard_size(bundle))
    return replace(found, model_images_per_s=0, images_per_s=0)


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
    model = with_uint8_input(onnx.load(copy / "model.onnx"), manifest.preprocess)
    replace_file(copy, "model.onnx", model.SerializeToString())
    edited(copy, inputs=[{"name": "input", "dtype": "uint8", "shape": ["batch", 28, 28, 1]}])
    assert run(copy, "--data", "built-in", "--json").json["top1"]["correct"] == 1889


def test_the_summary_tells_what_the_json_does(run: Any, bundle: Path, tmp_path: Path) -> None:
    options = ("--data", "built-in", "--worst", "2", "--resume", tmp_path / "journal")
    shown = run(bundle, *options)
    lines = shown.out.splitlines()
    assert lines[0] == f"bundle       {bundle}, fp16 on onnxruntime (cpu)"
    reference = run(bundle, "--data", "built-in", "--images", "20", "--backend", "pytorch").out.splitlines()
    assert reference[0] == f"bundle       {bundle}, the fp32 reference on pytorch (cpu)"
    assert lines[1] == "data         built-in (test), 2000 images, 10 classes, matched by name"
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
