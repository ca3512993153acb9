"""`report.html`: its command lines make and check the bundle again, and `resnet-deploy check --html` writes it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Made
from reports import section

from exporter.cli._check import check as check_command
from exporter.pipeline.plan import channels_from_text
from exporter.verification.report.page import html_from_sections
from exporter.verification.report.reproduce import check_line, export_lines
from runtimes import Manifest, TensorSpec
from runtimes.manifest import Asked, CalibrationFacts
from runtimes.parity.budget import Budget
from runtimes.parity.budget_options import budget_from_text

# --- how to make and check it again ---


@pytest.mark.parametrize(
    ("kind", "uint8", "outputs"),
    [("shipped", False, "logits"), ("random", True, "logits"), ("random", False, "layer1")],
)
def test_the_export_s_command_line_is_one(run: Any, manifest: Manifest, kind: Any, uint8: bool, outputs: str) -> None:
    spec = TensorSpec("input", "uint8" if uint8 else "float32", ("batch", 28, 28, 1) if uint8 else ("batch", 1, 28, 28))
    model = replace(
        manifest.model,
        name="resnet20",
        source="cifar",
        variant="projection",
        weights=replace(manifest.model.weights, kind=kind),
    )
    made = replace(
        manifest,
        model=model,
        precision="int8",
        inputs=(spec,),
        outputs=(replace(manifest.outputs[0], name=outputs),),
        preprocess=manifest.preprocess,
    )
    command = export_lines(made)[0].replace("\\\n", "")
    told = run(*shlex.split(command)[1:], "--dry-run", "--json").json
    assert (told["model"], told["precision"], told["variant"], told["batch"]) == (
        "resnet20",
        "int8",
        "projection",
        "2:3:4",
    )
    assert told["weights"] == ("random" if kind == "random" else "default")
    assert told["outputs"] == ("logits" if outputs == "logits" else "features (stages)")
    assert told["input"].startswith("uint8" if uint8 else "float32")


def test_what_an_export_was_asked_for_is_in_its_command_line(run: Any, manifest: Manifest) -> None:
    limits = {"min_agreement": 0.9, "min_sqnr_db": 1 / 3}
    made = replace(
        manifest,
        precision="int8",
        model=replace(manifest.model, name="resnet20", source="cifar", variant="projection"),
        asked=Asked(seed=3, proof_images=700, budget=limits),
    )
    words = shlex.split(export_lines(made)[0].replace("\\\n", ""))
    told = run(*words[1:], "--dry-run", "--json").json
    assert (told["budget"], told["proof_images"]) == (limits, 700)
    assert words[words.index("--seed") + 1] == "3"
    assert not {"--seed", "--proof-images", "--budget"} & set(shlex.split(export_lines(manifest)[0]))


def test_what_the_manifest_knows_by_sha256_alone_is_a_comment(manifest: Manifest) -> None:
    weights = replace(manifest.model.weights, kind="file", sha256="ab" * 32)
    lines = export_lines(
        replace(
            manifest,
            model=replace(manifest.model, weights=weights),
            files={**manifest.files, "labels.txt": manifest.files["model.onnx"]},
        )
    )
    assert "--weights FILE" in lines[0]
    assert "--labels labels.txt" in lines[0]
    assert lines[1] == f"# FILE: the checkpoint of sha256 {'ab' * 32}"
    assert lines[2].startswith("# and --data")


def test_numbers_in_the_command_lines_are_the_very_ones(good: Made, manifest: Manifest) -> None:
    mean, std = (0.48235294117647054, 1e-7, 127.0), (0.00392156862745098, 1 / 3, 255.0)
    words = shlex.split(
        export_lines(replace(manifest, preprocess=replace(manifest.preprocess, mean=mean, std=std)))[0].replace(
            "\\\n", ""
        )
    )
    for option, values in (("--mean", mean), ("--std", std)):
        assert channels_from_text(words[words.index(option) + 1], option) == values
    limits = {"own_error": 1 / 3, "min_sqnr_db": 20.0}
    words = shlex.split(check_line(replace(good[1], budget=limits)).replace("\\\n", ""))
    assert budget_from_text(tuple(one for option, one in pairwise(words) if option == "--budget")) == limits
    assert budget_from_text((Budget(**limits).text(),)) == limits


def test_what_was_left_out_of_the_bundle_and_few_images_are_in_the_command_line(manifest: Manifest) -> None:
    assert "--no-reference" in export_lines(manifest)[0]
    assert "--allow-few-images" not in export_lines(manifest)[0]
    few = replace(
        manifest,
        calibration=CalibrationFacts("mse", 63, "0" * 64),
        files={"reference.pt2": manifest.files["model.onnx"]},
    )
    assert "--no-reference" not in export_lines(few)[0]
    assert "--allow-few-images" in export_lines(few)[0]


def test_the_check_s_command_line_is_one(good: Made) -> None:
    plan = replace(good[1], data="my pictures", images=7, budget={"min_cosine": 0.5}, against=good[1].bundle)
    words = shlex.split(check_line(plan).replace("\\\n", ""))
    given = check_command.make_context("check", words[2:]).params
    assert [str(path) for path in given["bundles"]] == ["tiny-fp32"]
    assert (given["backends"], given["data"], given["images"]) == (("onnxruntime",), "my pictures", 7)
    assert (given["budget"], given["against"]) == (("min_cosine=0.5",), str(good[1].bundle.folder))


# --- the command ---


def test_check_writes_the_page_even_where_a_limit_is_broken(
    deploy: Any, good: Made, turned: Made, tmp_path: Path
) -> None:
    paths = [made[1].bundle.folder for made in (good, turned)]
    shown = deploy("check", *paths, "--backend", "onnxruntime", "--quiet", "--html", tmp_path / "report.html")
    assert shown.code == 4
    assert (tmp_path / "report.html").read_bytes() == html_from_sections([section(good), section(turned)])


def test_a_page_into_a_folder_that_is_not_there_is_refused_before_the_work(
    deploy: Any, good: Made, tmp_path: Path
) -> None:
    shown = deploy("check", good[1].bundle.folder, "--html", tmp_path / "nowhere" / "report.html")
    assert shown.code == 2
    assert "give another --html" in shown.error


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_told_before_the_work(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("page", "plots", "drawing", "environment"):
        monkeypatch.delitem(sys.modules, f"exporter.verification.report.{name}")
        monkeypatch.delattr(f"exporter.verification.report.{name}")
    monkeypatch.setitem(sys.modules, package, None)
    shown = deploy("check", tmp_path / "no bundle", "--html", tmp_path / "report.html")
    assert shown.code == 3
    assert (
        shown.error
        == f"error: an HTML report needs the package '{package}', which is not installed; pip install 'resnet-export[report]'"
    )


def test_a_bundle_carries_its_report_with_the_drift_of_its_blocks(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("int8")
    page = bundle.file("report.html").read_text()
    assert "resnet20-int8" in page
    assert "layer3.2" in page
    assert "onnx fp32" in page
    assert str(bundle.folder) not in page
