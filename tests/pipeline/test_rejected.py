"""A refused bundle is kept as evidence where that is asked for: to be read, and for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Ran

from exporter.cli import export as export_cli
from exporter.pipeline import export as pipeline
from runtimes import Bundle, open_runtime
from runtimes.bundle_writing import check_rejected, keep_rejected, rejected_path, write_manifest
from runtimes.errors import BundleError, PlanError
from runtimes.manifest import Manifest

FP16 = ("resnet20", "--fp16", "--weights", "random", "--batch", "1:2:4", "--output", "out", "--quiet")
STRICT = ("--budget", "max_relative_error=1e-5", "--keep-rejected")


@pytest.fixture(name="rejected", scope="module")
def rejected_fixture(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What `resnet-export resnet20 --fp16 --keep-rejected` leaves of a bundle that breaks a limit."""
    folder = tmp_path_factory.mktemp("rejected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["command", *FP16, *STRICT])
        with pytest.raises(SystemExit) as left:
            export_cli.main()
    assert left.value.code == 4
    assert [path.name for path in folder.iterdir()] == ["out.rejected"]
    return folder / "out.rejected"


# --- what is kept ---


def test_the_manifest_and_the_report_say_that_it_is_refused_and_why(rejected: Path) -> None:
    bundle = Bundle.open(rejected)
    assert set(bundle.manifest.files) == {"model.onnx", "reference.pt2", "golden.npz", "report.html"}
    assert not bundle.manifest.parity.ok
    assert bundle.manifest.parity.budget.max_relative_error == 1e-5
    said = bundle.manifest.parity.backends["onnxruntime"].violations
    assert re.fullmatch(r"largest relative error \d\.\d\de-0\d, budget <= 1e-05", said[0])
    page = (rejected / "report.html").read_text()
    assert "out of budget" in page
    assert said[0].split(", ")[0].removeprefix("largest relative error ") in page
    assert said[0] in bundle.rejection


def test_nothing_runs_it_or_builds_from_it(rejected: Path, deploy: Callable[..., Ran]) -> None:
    for model in (rejected, Bundle.open(rejected)):
        for backend in ("onnxruntime", "pytorch"):
            with pytest.raises(
                BundleError, match="out.rejected was rejected by its export and is kept as evidence alone"
            ):
                open_runtime(model, backend)
    for command in (("build", rejected, "--backend", "tensorrt-rtx"), ("eval", rejected, "--data", "built-in")):
        ran = deploy(*command)
        assert ran.code == 1
        assert "out.rejected was rejected by its export" in ran.error
    assert sorted(path.name for path in rejected.iterdir()) == sorted(
        [*Bundle.open(rejected).manifest.files, "manifest.json"]
    )


def test_it_can_be_looked_into(rejected: Path, deploy: Callable[..., Ran]) -> None:
    shown = deploy("inspect", rejected)
    assert shown.code == 0
    assert "rejected     by its export, and kept as evidence: onnxruntime: largest relative error" in shown.out
    ran = deploy("check", rejected, "--backend", "onnxruntime", "--blocks", "--bisect", "--json", "--quiet")
    assert ran.code == 1
    (found,) = json.loads(ran.out)["bundles"]
    assert (found["ok"], found["backends"][0]["verdict"]) == (False, "failed")
    assert "was rejected by its export" in found["backends"][0]["reason"]
    assert found["drift"]["blocks"][0] == "stem"
    assert (found["bisection"]["verdict"], len(found["bisection"]["returned"]) > 0) == ("mended", True)


# --- where it is kept ---


def test_without_the_option_nothing_is_kept_and_the_option_is_named(run: Any, tmp_path: Path) -> None:
    ran = run(*FP16, *STRICT[:2])
    assert ran.code == 4
    assert ran.error.endswith("; take --fp32; no bundle was written, --keep-rejected keeps it as evidence")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_and_an_earlier_rejected_bundle_is_replaced(
    run: Any, tmp_path: Path, rejected: Path, exported: Path
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    shutil.copytree(rejected, tmp_path / "out.rejected")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    earlier = (rejected / "manifest.json").read_bytes()
    ran = run(*FP16, *STRICT, "--seed", "1", "--force")
    assert ran.code == 4
    assert "; out was not written, the evidence is in out.rejected" in ran.error
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert (tmp_path / "out.rejected" / "manifest.json").read_bytes() != earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.rejected"]


def test_the_same_command_keeps_the_same_bytes(run: Any, tmp_path: Path, rejected: Path) -> None:
    assert run(*FP16, *STRICT).code == 4
    for path in rejected.iterdir():
        assert (tmp_path / "out.rejected" / path.name).read_bytes() == path.read_bytes(), path.name


def somebodys(folder: Path, manifest: Manifest) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def file(folder: Path, manifest: Manifest) -> None:
    folder.write_text("mine")


def accepted(folder: Path, manifest: Manifest) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_text("a model")
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (somebodys, "out.rejected holds something else than a bundle"),
        (file, "out.rejected is not a folder"),
        (accepted, "out.rejected is a bundle that was not rejected"),
    ],
)
def test_somebody_elses_folder_is_refused_before_the_work(
    run: Any, tmp_path: Path, manifest: Manifest, make: Callable[[Path, Manifest], None], says: str
) -> None:
    make(tmp_path / "out.rejected", manifest)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = run(*FP16, *STRICT, "--force")
    assert ran.code == 2
    assert says in ran.error
    assert "weights" not in ran.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_came_there_meanwhile_is_not_replaced(tmp_path: Path, manifest: Manifest) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    check_rejected(tmp_path / "out")
    accepted(rejected_path(tmp_path / "out"), manifest)
    with pytest.raises(PlanError, match="is a bundle that was not rejected"):
        keep_rejected(staging, tmp_path / "out")
    assert staging.is_dir()


def test_an_interruption_while_it_is_written_leaves_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pipeline, "write_bundle", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to be ignored
    try:
        ran = run(*FP16, *STRICT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130
    assert list(tmp_path.iterdir()) == []


# --- undecided ---


def test_too_few_images_end_with_4_and_say_how_many_and_which_option(run: Any, tmp_path: Path) -> None:
    options = ("--output", "out", "--quiet", "--budget", "confidence=0.95", "--proof-images", "100", "--keep-rejected")
    ran = run("resnet20", "--fp16", "--batch", "1:2:4", *options)
    assert ran.code == 4
    assert "error: parity is undecided over 100 images, onnxruntime: top-1 agreement 100.00% of 100 images" in ran.error
    needed = re.search(r": undecided, some (\d+) images would decide it; give --proof-images (\d+); ", ran.error)
    assert needed, ran.error
    assert 500 < int(needed[1]) < int(needed[2]) < 1100
    parity = Bundle.open(tmp_path / "out.rejected").manifest.parity
    assert (parity.ok, parity.images, parity.backends["onnxruntime"].violations) == (False, 100, ())
    assert "undecided" in parity.backends["onnxruntime"].undecided[0]
    assert "undecided" in (tmp_path / "out.rejected" / "report.html").read_text()
