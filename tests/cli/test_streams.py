"""Whatever names are like, wherever the output goes and whatever libraries write, a command ends as it should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnxsim
import pytest
from conftest import TINY_LABELS, Made
from PIL import Image

from exporter.graph.simplify import simplify
from exporter.pipeline.plan import ExportPlan
from exporter.verification.accuracy.evaluate import EvaluationData
from exporter.verification.plan import CheckPlan
from runtimes.bundle_writing import write_manifest
from runtimes.errors import PlanError, SimplifyError
from runtimes.printable import printable

COMMAND = [sys.executable, "-c", "from exporter.cli.deploy import main; main()"]
LATIN = os.fsdecode(b"caf\xe9")


def ended(*arguments: object, tail: str, **surroundings: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a shell, with what comes after it; the exit code is the command's own."""
    script = f'"$0" "$@" {tail}; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", script, *COMMAND, *map(os.fspath, map(str, arguments))]
    return subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, check=False)


@pytest.mark.parametrize("tail", ["> /dev/null", "| true", "| head -c 0", ">&-", "2>&1 | true"])
def test_the_verdict_is_the_exit_code_whoever_reads(tail: str, good: Made) -> None:
    folder = good[1].bundle.folder
    done = ended("check", folder, "--backend", "onnxruntime", "--budget", "min_sqnr_db=300", "--quiet", tail=tail)
    assert (done.returncode, b"Traceback" in done.stderr) == (4, False)


@pytest.mark.parametrize("arguments", [["--help"], ["inspect"]])
@pytest.mark.parametrize("tail", ["| true", ">&-", ">&- 2>&-", "<&-"])
def test_help_and_what_is_done_ends_with_0_whoever_reads(arguments: list[str], tail: str, good: Made) -> None:
    given = [*arguments, good[1].bundle.folder] if arguments == ["inspect"] else arguments
    done = ended(*given, tail=tail)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "surroundings",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_labels_and_names_are_shown_in_any_encoding(surroundings: dict[str, str], good: Made, tmp_path: Path) -> None:
    for name in (f"{LATIN}.png", "ü猫.png"):
        Image.new("L", (28, 28), 99).save(tmp_path / "picture.png")
        shutil.move(tmp_path / "picture.png", tmp_path / name)
        for more in ([], ["--json"]):
            done = ended("run", good[1].bundle.folder, tmp_path / name, "--top", 1, *more, tail="", **surroundings)
            assert (done.returncode, done.stderr) == (0, b"")
            assert b"picture" not in done.stdout
            if more:
                assert list(json.loads(done.stdout)) == [f"{tmp_path}/{name}".replace(LATIN, r"caf\xe9")]


def test_a_bundle_and_pictures_whose_names_are_no_text_are_told_in_every_form(
    good: Made, tmp_path: Path, deploy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"{LATIN}\x1b[31m\n::error::x"
    shutil.copytree(good[1].bundle.folder, folder)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = ("--junit", tmp_path / "r.xml", "--html", tmp_path / "r.html", "--github")
    shown = deploy("check", folder, "--backend", "onnxruntime", "--budget", "min_sqnr_db=300", *files, "--quiet")
    assert shown.code == 4
    assert r"caf\xe9\x1b[31m\n::error::x" in shown.out.splitlines()[0]
    assert "\x1b" not in shown.out + shown.err
    ElementTree.parse(tmp_path / "r.xml")
    assert (tmp_path / "r.html").read_text(encoding="utf-8")
    assert r"caf\\xe9\\x1b[31m" in (tmp_path / "summary.md").read_text(
        encoding="utf-8"
    )  # in Markdown a backslash is written twice
    shown = deploy("inspect", folder, "--json")
    assert shown.json["bundle"] == f"{tmp_path}/caf\\xe9\x1b[31m\n::error::x"
    reason = "is no bundle: there is no such folder; give the folder that resnet-export wrote"
    assert deploy("check", tmp_path / LATIN).error == rf"error: {tmp_path}/caf\xe9 {reason}"


def test_a_bundle_without_its_graph_is_told_in_every_command(good: Made, tmp_path: Path, deploy: Any) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(good[1].bundle.folder, folder)
    (folder / "model.onnx").unlink()
    (folder / "manifest.json").unlink()
    write_manifest(folder, good[1].bundle.manifest)
    Image.new("L", (28, 28), 99).save(tmp_path / "a.png")
    assert deploy("inspect", folder).code == 0
    assert "has no model.onnx, which this backend runs" in deploy("run", folder, tmp_path / "a.png").error
    assert "has no model.onnx" in deploy("build", folder, "--backend", "tensorrt-rtx", "--quiet").error
    assert "has no model.onnx" in deploy("check", folder, "--backend", "pytorch", "--blocks", "--quiet").err
    shown = deploy("check", folder, "--backend", "onnxruntime", "--html", tmp_path / "r.html", "--quiet")
    assert (shown.code, "has no model.onnx" in shown.out) == (3, True)


@pytest.mark.parametrize(
    "surroundings",
    [{"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["utf-8", "C"],
)
def test_folders_of_classes_are_the_labels_in_any_locale(surroundings: dict[str, str], tmp_path: Path) -> None:
    for name in ("Müller", "猫"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "data" / name / "a.png")
    code = "import sys; from calibration.data import open_source; print(ascii(open_source(sys.argv[1]).classes))"
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    done = subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{('Müller', '猫')!a}\n"


def test_an_evaluation_goes_on_past_a_damaged_picture_whose_name_is_no_text(
    good: Made, tmp_path: Path, deploy: Any
) -> None:
    folders = [tmp_path / "data" / label.replace("/", "_") for label in TINY_LABELS]
    for place, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for number in range(11):
            Image.new("L", (28, 28), place * number).save(folder / f"{number}.png")
    (folders[0] / f"{LATIN}.png").write_bytes(b"junk")
    options = ("--data", tmp_path / "data", "--resume", tmp_path / "journal", "--json", "--quiet")
    first, second = (deploy("eval", good[1].bundle.folder, *options) for _ in range(2))
    assert first.code == second.code == 0, first.err
    assert [r"caf\xe9.png" in one for one in first.json["unreadable"]] == [True]
    assert second.json["top1"] == first.json["top1"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü猫", "plain ü猫"),
        (LATIN, r"caf\xe9"),
        (os.fsdecode("ü猫".encode()), "ü猫"),
        ("\ud800", r"\ud800"),
        ("a\n\x1b[31m\u2028", r"a\n\x1b[31m\u2028"),
        ("", ""),
    ],
)
def test_what_is_no_letter_sign_or_space_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_onnxsim_writes_nothing_past_us(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx

    def loud(model: onnx.ModelProto) -> Any:
        os.write(1, b"native\n")
        os.write(2, b"Traceback (most recent call last):\n")
        sys.stderr.write("more\n")
        raise RuntimeError("no way")

    monkeypatch.setattr(onnxsim, "simplify", loud)
    model, failures = onnx.load(tiny_model / "model.onnx"), []

    def work() -> None:
        try:
            simplify(model, None)  # type: ignore[arg-type]  # it fails before it looks at them
        except SimplifyError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"ours\n")
    assert failures == ["onnxsim cannot simplify the graph: no way"] * 4
    assert capfd.readouterr() == ("", "ours\n")


# --- what a plan is given from Python ---


@pytest.mark.parametrize(
    "given",
    [
        {"output": None},
        {"model": 7},
        {"precision": None},
        {"classes": "10"},
        {"labels": ["a", "b"]},
        {"image_size": 224},
        {"image_size": (224,)},
        {"mean": (0.5, "x")},
        {"batch": "1:8:32"},
        {"seed": 1.5},
        {"seed": True},
        {"force": 1},
        {"features": True},
    ],
    ids=str,
)
def test_an_export_of_what_a_field_does_not_take_is_refused_by_its_name(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"expected {next(iter(given))} as "):
        ExportPlan(**{"model": "resnet20", "output": Path("bundle"), **given})


def test_paths_may_be_given_as_texts_and_texts_as_paths() -> None:
    plan = ExportPlan("resnet20", "bundle", weights=Path("model.pth"), data=Path("images"))  # type: ignore[arg-type]  # as people write it
    assert (plan.output, plan.weights, plan.data) == (Path("bundle"), "model.pth", "images")


@pytest.mark.parametrize(
    "given",
    [
        {"bundle": "bundle"},
        {"backends": "onnxruntime"},
        {"backends": (None,)},
        {"budget": {"min_agreement": "x"}},
        {"budget": None},
        {"data": 7},
        {"against": "old"},
        {"images": 0},
        {"images": None},
        {"timeout_s": "x"},
    ],
    ids=str,
)
def test_a_check_of_what_a_field_does_not_take_is_refused(given: dict[str, Any], good: Made) -> None:
    with pytest.raises(PlanError, match="expected "):
        CheckPlan(**{"bundle": good[1].bundle, "backends": ("onnxruntime",), **given})


@pytest.mark.parametrize(
    "given", [{"data": None}, {"images": 0}, {"images": -1}, {"images": "x"}, {"synsets": 7}], ids=str
)
def test_labelled_pictures_of_what_a_field_does_not_take_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="expected "):
        EvaluationData(**{"data": "built-in", **given})


def test_a_home_that_cannot_be_written_is_not_talked_about(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, in which root cannot make a folder either")
    surroundings = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": "",
        "XDG_CONFIG_HOME": "",
        "MPLCONFIGDIR": "",
    }
    code = "import exporter.verification.report.page, runtimes.backends.onnxruntime"
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
