"""`resnet-deploy check`: every backend that is here against the golden logits, and what is said when one does not keep to them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import crashing
import numpy as np
import onnx
import pytest
from conftest import Made
from onnx import numpy_helper
from rounding import needs_rounding
from spoilt import with_file

from calibration.data import built_in
from calibration.table import table_from_file
from exporter import ExportPlan, export
from exporter.verification import check
from exporter.verification import own_process as isolated
from exporter.verification.bundle_diff import changes
from exporter.verification.check import check_bundle
from exporter.verification.inputs import gather_inputs
from exporter.verification.plan import CheckPlan
from runtimes import Accuracy, Budget, Bundle, backend_names, compare
from runtimes.errors import PlanError
from runtimes.parity.budget_options import budget_from_text, changed_budget
from runtimes.parity.golden import golden_arrays
from runtimes.specs import BatchRange


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def run(deploy: Any) -> Any:
    return deploy


def replaced(bundle: Path, name: str, data: bytes) -> None:
    """Put another file into the bundle, with its sha256 in the manifest."""
    (bundle / name).write_bytes(data)
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(document))


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """A JUnit file's test cases by group and name."""
    return {
        f"{case.get('classname')}.{case.get('name')}": case
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }


def test_every_backend_is_listed_and_those_here_are_in_budget(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 0
    assert [line.split()[0] for line in shown.out.splitlines()[2:4]] == ["onnxruntime", "pytorch"]
    assert "batch 1, 8, 32" in shown.out
    assert "tensorrt     not here: backend 'tensorrt' needs the package 'tensorrt'" in shown.out
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "resnet20-fp16",
        "0",
        "0",
        "2",
    )
    found = cases(tmp_path / "junit.xml")
    assert int(suite.get("tests") or 0) == len(found)
    limits = ("finite", "max_relative_error", "min_agreement", "max_batch_difference")
    expected = {f"resnet20-fp16.{backend}.{limit}" for backend in ("onnxruntime", "pytorch") for limit in limits}
    assert set(found) == expected | {"resnet20-fp16.tensorrt.answers", "resnet20-fp16.tensorrt-rtx.answers"}
    assert found["resnet20-fp16.tensorrt.answers"].find("skipped") is not None
    assert set(backend_names()) == {name.split(".")[1] for name in found}


def test_json_has_each_backends_verdict_and_figures(run: Any, bundle: Path) -> None:
    answer = run("check", bundle, "--backend", "onnxruntime", "--json", "--quiet").json
    (checked,) = answer["bundles"]
    (one,) = checked["backends"]
    assert (answer["ok"], checked["ok"], checked["images"], one["verdict"]) == (True, True, 32, "ok")
    assert one["answer"]["report"]["batches"] == [1, 8, 32]
    measured = one["answer"]["report"]["backends"]["onnxruntime"]
    assert measured["max_relative_error"] < 1e-2
    kept = {limit["name"]: limit["ok"] for limit in one["answer"]["limits"]}
    assert kept == {"finite": True, "max_relative_error": True, "min_agreement": True, "max_batch_difference": True}
    assert 0 <= measured["max_batch_difference"] < 1e-2
    histogram = one["answer"]["errors"]
    assert sum(histogram["counts"]) + histogram["exact"] == 32 * 10  # each image once
    assert len(histogram["decades"]) == len(histogram["counts"]) + 1


def test_a_broken_budget_ends_with_4_and_is_a_failure_in_junit(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run(
        "check",
        bundle,
        "--backend",
        "onnxruntime",
        "--budget",
        "max_relative_error=1e-9",
        "--junit",
        tmp_path / "junit.xml",
    )
    assert shown.code == 4
    assert "error: resnet20-fp16: onnxruntime is out of budget: largest relative error" in shown.err
    assert "budget <= 1.00e-09" in shown.err
    assert "onnxruntime: largest relative error" in shown.out
    assert "parity " not in shown.err  # the table is on stdout already
    found = cases(tmp_path / "junit.xml")
    failure = found["resnet20-fp16.onnxruntime.max_relative_error"].find("failure")
    assert failure is not None
    assert "largest relative error" in (failure.get("message") or "")
    assert found["resnet20-fp16.onnxruntime.min_agreement"].find("failure") is None


def test_the_table_of_a_broken_budget_stands_on_stderr_where_stdout_is_json(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "onnxruntime", "--budget", "max_relative_error=1e-9", "--json", "--quiet")
    assert (shown.code, shown.json["ok"]) == (4, False)
    assert shown.err.startswith("parity ")


def test_answers_that_are_not_finite_are_out_of_budget(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    replaced(bundle, "model.onnx", model.SerializeToString())
    shown = run("check", bundle, "--backend", "onnxruntime")
    assert shown.code == 4
    assert "not finite" in shown.err
    (line,) = (line.split() for line in shown.out.splitlines() if line.startswith("onnxruntime  "))
    assert line == ["onnxruntime", "-", "-", "-", "-", "-", "0.00%", "0.00%", "32", "OUT", "OF", "BUDGET"]


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        (crashing.segfaults, "its process was ended by SIGSEGV"),
        (crashing.leaves, "its process ended with exit code 3 and no answer"),
    ],
)
def test_a_backend_that_crashes_takes_nobody_along(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, crash: Any, reason: str
) -> None:
    opened = Bundle.open(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(check, "_run_backend", crash)
        (crashed,) = check_bundle(CheckPlan(opened, ["pytorch"]))[0].backends
    assert (crashed.verdict, crashed.answer) == ("crashed", None)
    assert crashed.reason.startswith(reason)
    (other,) = check_bundle(CheckPlan(opened, ["onnxruntime"]))[0].backends
    assert other.verdict == "ok"


def test_a_process_that_dies_before_it_has_read_its_task_is_not_waited_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert golden_arrays(Bundle.open(bundle))[0].nbytes > 1 << 16  # more than a pipe holds
    monkeypatch.setattr(isolated, "_serve", crashing.leaves)
    (crashed,) = check_bundle(CheckPlan(Bundle.open(bundle), ["onnxruntime"]))[0].backends
    assert (crashed.verdict, crashed.reason) == (
        "crashed",
        "its process ended with exit code 3 and no answer; run it alone with --backend to see what it prints",
    )


@pytest.mark.parametrize("hung", ["_run_backend", "_serve"])
def test_a_backend_that_hangs_is_given_up_after_its_time(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, hung: str
) -> None:
    monkeypatch.setattr(check if hung == "_run_backend" else isolated, hung, crashing.hangs)
    (late,) = check_bundle(CheckPlan(Bundle.open(bundle), ["onnxruntime"], timeout_s=2))[0].backends
    assert (late.verdict, late.answer, late.seconds < 60) == ("failed", None, True)
    assert late.reason == "no answer within 2 s; allow it more, or run it alone with --backend to see what it prints"


def test_time_enough_is_no_limit(run: Any, bundle: Path) -> None:
    assert run("check", bundle, "--backend", "onnxruntime", "--timeout", "600").code == 0
    assert "Invalid value for '--timeout'" in run("check", bundle, "--timeout", "0").err
    assert "expected a timeout of more than 0 seconds, got nan" in run("check", bundle, "--timeout", "nan").error
    assert run("check", bundle, "--backend", "onnxruntime", "--timeout", "1e300").code == 0


def test_a_crash_ends_with_1_and_the_others_still_report(run: Any, bundle: Path, tmp_path: Path) -> None:
    # onnxruntime runs; the program is no program, which is a failure of pytorch alone
    replaced(bundle, "reference.pt2", b"no program")
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 1
    assert "resnet20-fp16: pytorch failed: pytorch cannot load" in shown.err
    assert next(line for line in shown.out.splitlines() if line.startswith("onnxruntime")).endswith("ok")
    found = cases(tmp_path / "junit.xml")
    assert found["resnet20-fp16.pytorch.answers"].find("error") is not None


def test_a_backend_asked_for_that_is_not_here_ends_with_3(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("check", bundle, "--backend", "tensorrt", "--junit", tmp_path / "junit.xml")
    assert shown.code == 3
    assert cases(tmp_path / "junit.xml")["resnet20-fp16.tensorrt.answers"].find("error") is not None
    assert "tensorrt cannot answer: backend 'tensorrt' needs the package" in shown.err


def test_an_unknown_backend_is_told_the_nearest(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "onnx-runtime")
    assert shown.code == 2
    assert "did you mean onnxruntime" in shown.error


@pytest.mark.parametrize("data", [b"", b"rubbish"])
def test_a_golden_file_that_is_none_is_named(run: Any, bundle: Path, data: bytes) -> None:
    replaced(bundle, "golden.npz", data)
    shown = run("check", bundle, "--backend", "onnxruntime")
    assert shown.code == 1
    assert "golden.npz does not hold golden inputs" in shown.err


def test_a_missing_or_changed_golden_file_makes_the_bundle_unreadable(run: Any, bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes(b"changed")
    assert "golden.npz was changed" in run("check", bundle).error
    (bundle / "golden.npz").unlink()
    shown = run("check", bundle)
    assert (shown.code, "golden.npz is missing" in shown.error) == (1, True)


def test_outputs_that_would_spoil_a_bundle_or_each_other_are_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("--html", bundle / "report.html"), "lies in the bundle"),
        (("--junit", bundle / "new.xml"), "lies in the bundle"),
        (("--junit", tmp_path / "a", "--html", tmp_path / "a"), "expected a file each for --junit and --html"),
        (("--junit", ""), "expected a file for --junit"),
    ):
        shown = run("check", bundle, *arguments)
        assert (shown.code, said in shown.error) == (2, True), shown.err
    assert run("check", bundle, "--backend", "onnxruntime").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "all", "--backend", "nonsense"), "unknown backend 'nonsense'"),
        (("--backend", "all", "--backend", "pytorch"), "expected backends by name or all, got both"),
        (("--data", ""), "expected something for --data, got nothing"),
        (("--against", " "), "expected something for --against, got nothing"),
    ],
)
def test_what_was_asked_for_wrongly_is_told(run: Any, bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    shown = run("check", bundle, *arguments)
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_a_backend_named_twice_answers_once(run: Any, bundle: Path) -> None:
    (checked,) = run("check", bundle, "--backend", "onnxruntime", "--backend", "onnxruntime", "--json", "--quiet").json[
        "bundles"
    ]
    assert len(checked["backends"]) == 1


def test_junit_into_a_folder_that_is_not_there_is_refused_before_the_work(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    shown = run("check", bundle, "--junit", tmp_path / "nowhere" / "junit.xml")
    assert shown.code == 2
    assert "there is no folder" in shown.error


def test_a_golden_file_that_would_fill_the_memory_or_run_code_is_refused_in_one_line(run: Any, bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as arrays:
        logits = arrays["logits"]
    forged, head = io.BytesIO(), b"{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, 999999, 999999)}"
    with zipfile.ZipFile(forged, "w") as archive:
        archive.writestr("inputs.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head)
        archive.writestr("logits.npy", b"")
    objects = io.BytesIO()
    np.savez(objects, inputs=np.array([{}], object), logits=logits)
    scalar = io.BytesIO()
    np.savez(scalar, inputs=np.float32(1), logits=logits)
    files = (
        (forged, "expected 63,999,872,000,064 bytes"),
        (objects, "one of type |O, which is not read"),
        (scalar, "a single number for inputs"),
    )
    for file, said in files:
        replaced(bundle, "golden.npz", file.getvalue())
        shown = run("check", bundle, "--backend", "onnxruntime")
        assert (shown.code, said in shown.err, shown.err.strip().count("\n")) == (1, True, 0)


def test_a_golden_file_of_another_model_is_told_from_this_ones(run: Any, bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as arrays:
        inputs, logits = arrays["inputs"], arrays["logits"]
    for changed, said in (
        ({"inputs": inputs[:, :, :20], "logits": logits}, "its input are float32 1x20x28, expected float32 1x28x28"),
        ({"inputs": inputs, "logits": logits[:, :7]}, "its logits are float32 7, expected float32 10"),
        (
            {"inputs": inputs.astype(np.float64), "logits": logits},
            "its input are float64 1x28x28, expected float32 1x28x28",
        ),
    ):
        file = io.BytesIO()
        np.savez(file, **changed)
        replaced(bundle, "golden.npz", file.getvalue())
        shown = run("check", bundle, "--backend", "onnxruntime")
        assert (shown.code, f"golden.npz is of another model: {said}" in shown.err) == (1, True)


def test_no_backend_here_ends_with_3(run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.verification.parity_toml.backend_names", lambda: ("tensorrt", "tensorrt-rtx"))
    shown = run("check", bundle, "--junit", tmp_path / "junit.xml")
    assert shown.code == 3
    assert all(case.find("error") is not None for case in cases(tmp_path / "junit.xml").values())
    assert "tensorrt cannot answer" in shown.err


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
    assert re.search("--data is held against the bundle's reference program: .* has no reference.pt2", shown.err)
    shown = run("check", folder)  # the others answer
    assert (shown.code, "pytorch      not here: " in shown.out) == (0, True)


def test_images_without_data_means_nothing(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--images", "5")
    assert (shown.code, "a number of images is about the pictures of --data" in shown.error) == (2, True)


# --- budgets ---


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("min_agrement=0.9", "unknown budget 'min_agrement'; did you mean min_agreement?"),
        ("min_agreement=1.5", "expected min_agreement from 0 to 1, got 1.5"),
        ("max_relative_error=-1", "expected max_relative_error of at least 0, got -1"),
        ("max_relative_error=nan", "expected max_relative_error of at least 0, got nan"),
        ("max_relative_error", "expected --budget as NAME=VALUE, got 'max_relative_error'"),
        ("max_relative_error=a", "expected a number for max_relative_error, got 'a'"),
        ("min_agreement=99%", "expected a number for min_agreement, got '99%'"),
        (" ", "expected --budget as NAME=VALUE, got nothing"),
    ],
)
def test_a_budget_that_is_none_is_refused_before_the_work(run: Any, bundle: Path, budget: str, said: str) -> None:
    shown = run("check", bundle, "--budget", budget)
    assert (shown.code, said in shown.error) == (2, True), shown.err


def test_a_limit_broken_by_less_than_is_shown_is_told_with_more_digits() -> None:
    reference = np.random.default_rng(0).standard_normal((8, 10))
    measured = compare(reference, reference * (1 + 1e-7 * np.arange(10)), Budget(0.0))
    (said,) = (limit.text for limit in Budget(0.0, min_cosine=1.0).limits(measured) if limit.name == "min_cosine")
    assert measured.worst_cosine is not None
    assert 0.999999 < measured.worst_cosine < 1
    assert said == f"worst cosine {measured.worst_cosine!r}, budget >= 1.0"


def test_several_limits_may_stand_in_one_text() -> None:
    assert budget_from_text(("min-agreement=0.9, min_cosine=0.5", "min_sqnr_db=3")) == {
        "min_agreement": 0.9,
        "min_cosine": 0.5,
        "min_sqnr_db": 3.0,
    }


def test_a_budgets_text_gives_the_budget_back() -> None:
    budget = Budget(0.05, min_agreement=0.98, min_cosine=0.99, min_sqnr_db=20.0, max_accuracy_drop=0.01)
    assert changed_budget(Budget(0.0), budget_from_text((budget.text(),))) == budget


def test_an_accuracy_that_fewer_images_could_not_show_is_not_judged() -> None:
    budget = Budget(0.05, max_accuracy_drop=0.01)
    logits = np.eye(2)
    measured = compare(logits, logits, budget)
    worse = {images: budget.limits(measured, Accuracy(images, 0.9, 0.8, (0.0, 1.0))) for images in (99, 100)}
    assert [limit.name for limit in worse[99]] == ["finite"]
    assert [(limit.name, limit.ok) for limit in worse[100]] == [("finite", True), ("max_accuracy_drop", False)]
    assert worse[100][1].text == "fall of top-1 10.00%, budget <= 1.00%"


def test_a_limit_that_was_asked_for_is_judged_or_refused(
    run: Any, bundle: Path, tmp_path: Path, shipped_bundle: Any
) -> None:
    shown = run("check", bundle, "--budget", "max_accuracy_drop=0")
    assert (shown.code, "max_accuracy_drop needs pictures whose classes are the model's" in shown.err) == (2, True)
    options = ("--backend", "onnxruntime", "--data", "built-in", "--images", "40", "--junit", tmp_path / "junit.xml")
    assert run("check", bundle, *options, "--budget", "max_accuracy_drop=0").code == 0
    assert "resnet20-fp16.onnxruntime.max_accuracy_drop" in cases(tmp_path / "junit.xml")
    shown = run("check", shipped_bundle("fp32", "stages").folder, "--budget", "min_agreement=1")
    assert (shown.code, "min_agreement is about classes" in shown.err) == (2, True)


@pytest.mark.parametrize(
    ("limit", "shape", "batch", "said"),
    [
        ("min_cosine", (1,), BatchRange(1, 4, 8), "gives a single one"),
        ("max_batch_difference", (10,), BatchRange(8, 8, 8), "about several batch sizes"),
    ],
)
def test_a_limit_that_the_model_cannot_have_is_refused(
    good: Made, limit: str, shape: tuple[int, ...], batch: BatchRange, said: str
) -> None:
    made = good[1].bundle
    output = replace(made.manifest.outputs[0], shape=("batch", *shape))
    plan = replace(
        good[1],
        bundle=replace(made, manifest=replace(made.manifest, outputs=(output,), batch=batch)),
        budget={limit: 0.5},
    )
    with pytest.raises(PlanError, match=said):
        gather_inputs(plan)


@needs_rounding
def test_a_limit_that_does_not_apply_is_a_skipped_case(run: Any, tmp_path: Path, shipped_bundle: Any) -> None:
    assert (
        run("check", shipped_bundle("int8").folder, "--backend", "onnxruntime", "--junit", tmp_path / "junit.xml").code
        == 0
    )
    skipped = cases(tmp_path / "junit.xml")["resnet20-int8.onnxruntime.max_accuracy_drop"].find("skipped")
    assert skipped is not None
    assert "needs pictures with labels" in (skipped.get("message") or "")


# --- flips ---


def test_flips_name_the_image_the_classes_and_the_margin(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    values = numpy_helper.to_array(bias).copy()
    values[4] += 1000  # whatever it sees is a coat
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    replaced(bundle, "model.onnx", model.SerializeToString())
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
    assert flips[0]["margin"] == pytest.approx((logits.max() - logits[4]) / np.abs(reference).max())
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
    other = shipped_bundle("int8").folder
    shown = run("check", other, "--against", bundle, "--backend", "onnxruntime")
    assert shown.code == 0
    assert "changed      precision: fp16 -> int8" in shown.out
    assert "changed      calibration.calibrator: nothing -> mse" in shown.out
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
    one, other = before.thresholds("mse")[name], after.thresholds("minmax")[name]
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


# --- GitHub ---


def test_github_gets_a_summary_and_an_annotation_for_each_broken_limit(
    run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    shown = run("check", bundle, "--backend", "onnxruntime", "--budget", "max_relative_error=1e-9", "--github")
    assert shown.code == 4
    (line,) = [line for line in shown.out.splitlines() if line.startswith("::error")]
    assert line.startswith("::error title=resnet20-fp16 on onnxruntime::largest relative error ")
    summary = (tmp_path / "summary.md").read_text()
    assert "resnet20-fp16" in summary
    assert "| onnxruntime | out of budget |" in summary
    run("check", bundle, "--backend", "onnxruntime", "--github")
    assert (tmp_path / "summary.md").read_text().count("### ") == 2  # added to what other steps wrote


def test_github_outside_a_workflow_is_refused(run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    shown = run("check", bundle, "--github")
    assert (shown.code, "is not set here" in shown.error) == (2, True)


# --- block by block ---


@needs_rounding
def test_blocks_and_bisect_stand_in_the_text_in_json_and_in_the_report(
    run: Any, tmp_path: Path, shipped_bundle: Any
) -> None:
    folder = shipped_bundle("int8").folder
    options = ("--backend", "onnxruntime", "--blocks", "--bisect", "--budget", "min_sqnr_db=37.5")
    shown = run("check", folder, *options, "--html", tmp_path / "report.html")
    assert shown.code == 4
    assert (
        "no block is, alone, beyond an SQNR of 37.5 dB" in shown.out
        or "is the first block that alone is beyond an SQNR of 37.5 dB" in shown.out
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
