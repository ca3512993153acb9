"""`resnet-deploy check` on pictures, against another bundle, and block by block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from rounding import needs_rounding
from spoilt import replace_file, with_file

from calibration.data import built_in
from calibration.table import table_from_file
from exporter import ExportPlan, export
from exporter.verification.bundle_diff import changes
from runtimes import Bundle

# --- pictures in place of the golden inputs ---


def test_data_is_held_against_the_reference_program(run: Any, bundle: Path) -> None:
    answer = run(
        "check", bundle, "--backend", "onnxruntime", "--data", "built-in", "--images", "150", "--json", "--quiet"
    ).json
    (checked,) = answer["bundles"]
    (one,) = checked["backends"]
    assert (checked["evidence"], checked["images"], one["verdict"]) == ("pictures of built-in (test)", 150, "ok")
    assert one["answer"]["accuracy"]["images"] == 150
    assert one["answer"]["accuracy"]["top1"] > 0.85
    assert 0 < one["answer"]["report"]["backends"]["onnxruntime"]["max_relative_error"] < 1e-2


def test_data_of_other_classes_has_no_accuracy(run: Any, bundle: Path, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for place in range(4):
            built_in("test").image(place).save(tmp_path / "animals" / name / f"{place}.png")
    answer = run("check", bundle, "--backend", "onnxruntime", "--data", tmp_path / "animals", "--json", "--quiet").json
    (checked,) = answer["bundles"]
    (one,) = checked["backends"]
    assert (one["verdict"], one["answer"]["accuracy"], checked["images"]) == ("ok", None, 8)
    assert "expected classes among the model's 10 labels" in checked["no_accuracy"]


def test_a_picture_in_a_hundred_that_cannot_be_read_is_left_out_and_said_and_two_are_too_many(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in range(101):
        built_in("test").image(place).save(folder / f"{place:03}.png")
    (folder / "007.png").write_bytes(b"no picture")
    shown = run("check", bundle, "--backend", "onnxruntime", "--data", folder)
    assert shown.code == 0
    assert "left out     cannot read the picture" in shown.out
    assert "100 images" in shown.out
    (folder / "008.png").write_bytes(b"no picture")
    shown = run("check", bundle, "--backend", "onnxruntime", "--data", folder)
    assert (shown.code, "2 of the 101 pictures cannot be read" in shown.err) == (1, True)


def test_an_empty_data_set_is_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = run("check", bundle, "--data", tmp_path / "empty")
    assert (shown.code, "holds no pictures" in shown.err) == (2, True)


def test_data_needs_the_reference_program(run: Any, tmp_path: Path, shipped_bundle: Any) -> None:
    folder = with_file(shipped_bundle("fp32"), tmp_path / "bare", "reference.pt2", None).folder
    shown = run("check", folder, "--data", "built-in", "--backend", "onnxruntime")
    assert shown.code == 3
    assert re.search("--data is held against the bundle's reference: .* has no reference.pt2", shown.err)
    shown = run("check", folder)  # the others answer
    assert (shown.code, "pytorch      not here: " in shown.out) == (0, True)


def test_images_without_data_means_nothing(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--images", "5")
    assert (shown.code, "a number of images needs --data: golden inputs are all run" in shown.error) == (2, True)


# --- flips ---


def test_flips_name_the_image_the_classes_and_the_margin(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    values = numpy_helper.to_array(bias).copy()
    values[4] += 1000  # whatever it sees is a coat
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    replace_file(bundle, "model.onnx", model.SerializeToString())
    shown = run("check", bundle, "--backend", "onnxruntime", "--json", "--quiet")
    assert shown.code == 4
    (one,) = shown.json["bundles"][0]["backends"]
    with np.load(bundle / "golden.npz") as arrays:
        reference = arrays["logits"]
    expected = {int(image) for image in np.flatnonzero(reference.argmax(1) != 4)}
    flips = one["answer"]["flips"]
    assert {flip["image"] for flip in flips} == expected
    assert one["answer"]["report"]["backends"]["onnxruntime"]["flips"]["total"] == len(flips)
    assert len(flips) == len(expected)  # each image once, though it was asked at three batch sizes
    assert all(flip["got"] == 4 and flip["reference"] == reference[flip["image"]].argmax() for flip in flips)
    logits = reference[flips[0]["image"]]
    largest = np.abs(reference - reference.mean(1, keepdims=True)).max()
    assert flips[0]["margin"] == pytest.approx((logits.max() - logits[4]) / largest)
    assert flips[0]["margin"] == max(flip["margin"] for flip in flips)
    text = run("check", bundle, "--backend", "onnxruntime")
    assert (
        f"flip         onnxruntime: golden image {flips[0]['image']}, class {flips[0]['reference']} -> 4, margin"
        in text.out
    )
    assert f"and {len(flips) - 10} more" in text.out


def test_a_flip_names_the_picture_by_its_file(run: Any, bundle: Path, tmp_path: Path) -> None:
    for place in range(12):
        path = tmp_path / "pictures" / f"picture-{place:02}.png"
        path.parent.mkdir(exist_ok=True)
        built_in("test").image(place).save(path)
    other = export(ExportPlan("resnet20", tmp_path / "other", weights="random")).folder
    arguments = (
        "--backend",
        "onnxruntime",
        "--against",
        other,
        "--data",
        tmp_path / "pictures",
        "--html",
        tmp_path / "report.html",
    )
    shown = run("check", bundle, *arguments)
    assert shown.code == 4
    names = re.findall(r"^flip +onnxruntime: (picture-\d\d\.png), class", shown.out, re.MULTILINE)
    assert len(names) >= 5
    assert names[0] in (tmp_path / "report.html").read_text()


# --- one bundle against another ---


def test_a_bundle_against_itself_has_no_change_and_no_error(run: Any, bundle: Path, exported: Path) -> None:
    answer = run("check", bundle, "--against", exported, "--backend", "onnxruntime", "--json", "--quiet").json
    (checked,) = answer["bundles"]
    assert (checked["changes"], checked["reference"]) == ([], f"resnet20-fp16 in {exported}")
    assert checked["backends"][0]["answer"]["report"]["backends"]["onnxruntime"]["max_relative_error"] == 0


@needs_rounding
def test_what_changed_between_two_bundles_is_listed_and_judged(run: Any, bundle: Path, shipped_bundle: Any) -> None:
    lowered = shipped_bundle("int8")
    other = lowered.folder
    shown = run("check", other, "--against", bundle, "--backend", "onnxruntime")
    assert shown.code == 0
    assert "changed      precision: fp16 -> int8" in shown.out
    assert f"changed      calibration.calibrator: nothing -> {lowered.manifest.calibration.calibrator}" in shown.out
    assert "changed      file model.onnx: sha256 " in shown.out
    assert "-> nothing\n" in shown.out  # an FP16 budget has an error that INT8's has not
    assert "calibration: nothing -> nothing" not in shown.out
    assert run("check", other, "--against", bundle, "--backend", "onnxruntime", "--budget", "min_sqnr_db=60").code == 4


def test_ranges_that_moved_are_named_with_their_move(tmp_path: Path, shipped_bundle: Any) -> None:
    old = shipped_bundle("int8").folder
    new = export(
        ExportPlan(
            "resnet20", tmp_path / "new", precision="int8", calibrator="minmax", calibration=old / "calibration.json"
        )
    ).folder
    found = {change.what: change for change in changes(Bundle.open(old), Bundle.open(new))}
    moved = [name for name in found if name.startswith("range ")]
    assert len(moved) == 10
    total = len(table_from_file(old / "calibration.json").tensors)
    assert found["ranges that moved"].new.endswith(f"of {total}; the largest moves are above")
    before, after = (table_from_file(folder / "calibration.json") for folder in (old, new))
    name = moved[0].removeprefix("range ")
    one, other = before.thresholds(before.calibrator)[name], after.thresholds("minmax")[name]
    assert found[moved[0]].new == f"{other:.6g} ({other / one - 1:+.1%})"


def test_bundles_that_cannot_be_asked_the_same_are_told_so(run: Any, bundle: Path, tmp_path: Path) -> None:
    other = export(ExportPlan("resnet20", tmp_path / "other", weights="random", classes=4)).folder
    shown = run("check", bundle, "--against", other)
    assert (shown.code, "gives other outputs" in shown.err) == (2, True)
    larger = export(ExportPlan("resnet20", tmp_path / "larger", image_size=(32, 32))).folder
    shown = run("check", bundle, "--against", larger)
    assert (shown.code, "give --data with pictures" in shown.err) == (2, True)
    shown = run(
        "check",
        bundle,
        "--against",
        larger,
        "--data",
        "built-in",
        "--images",
        "40",
        "--backend",
        "onnxruntime",
        "--json",
        "--quiet",
    )
    assert shown.json["bundles"][0]["images"] == 40
    assert "preprocess.crop" in {change["what"] for change in shown.json["bundles"][0]["changes"]}


# --- block by block ---


@needs_rounding
def test_blocks_and_bisect_stand_in_the_text_in_json_and_in_the_report(
    run: Any, tmp_path: Path, shipped_bundle: Any
) -> None:
    folder = shipped_bundle("int8").folder
    asked = ("--backend", "onnxruntime", "--blocks", "--bisect")
    (as_it_is,) = run("check", folder, *asked, "--json", "--quiet").json["bundles"]
    limit = round(as_it_is["bisection"]["lowered"]["sqnr_db"] + 0.6, 1)  # some more than it has
    options = (*asked, "--budget", f"min_sqnr_db={limit}")
    shown = run("check", folder, *options, "--html", tmp_path / "report.html")
    assert shown.code == 4
    assert (
        f"no block is, alone, beyond an SQNR of {limit} dB" in shown.out
        or f"is the first block that alone is beyond an SQNR of {limit} dB" in shown.out
    )
    assert re.search(r"^bisect +.* in FP32 mends? it", shown.out, re.MULTILINE)
    page = (tmp_path / "report.html").read_text()
    assert "layer1.0" in page
    assert "in FP32 mend" in page
    (checked,) = run("check", folder, *options, "--json", "--quiet").json["bundles"]
    names = checked["drift"]["blocks"]
    assert (names[0], names[-1], len(names)) == ("stem", "head", 11)
    assert [stage["name"] for stage in checked["drift"]["stages"]] == ["onnx fp32", "model.onnx", "simulation", "alone"]
    assert checked["bisection"]["verdict"] == "mended"
    assert set(checked["bisection"]["returned"]) <= set(names)


def test_a_bisection_that_cannot_be_is_refused_before_the_work(
    run: Any, bundle: Path, exported: Path, shipped_bundle: Any
) -> None:
    shown = run("check", bundle, "--bisect", "--against", exported)
    assert (shown.code, "--against has nothing to do with" in shown.error) == (2, True)
    shown = run("check", shipped_bundle("fp32").folder, "--bisect")
    assert (shown.code, "is all FP32" in shown.error) == (2, True)


def test_blocks_of_a_bundle_without_its_program_are_refused(run: Any, tmp_path: Path, shipped_bundle: Any) -> None:
    folder = with_file(shipped_bundle("fp32"), tmp_path / "bare", "reference.pt2", None).folder
    shown = run("check", folder, "--blocks", "--backend", "onnxruntime")
    assert (shown.code, "has no reference.pt2 to follow the blocks of" in shown.err) == (1, True)


def test_the_blocks_of_a_graph_that_resizes_are_followed(run: Any, shipped_bundle: Any) -> None:
    folder = shipped_bundle("fp16", uint8="full").folder
    (checked,) = run("check", folder, "--blocks", "--bisect", "--backend", "onnxruntime", "--json", "--quiet").json[
        "bundles"
    ]
    assert checked["drift"]["blocks"][0] == "stem"
    assert max(one["relative_error"] for one in checked["drift"]["stages"][0]["blocks"]) < 1e-5
    assert checked["bisection"]["verdict"] == "inside"
