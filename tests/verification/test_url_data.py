"""The commands on pictures that a URL names: the figures of the same folder, and storage's faults as exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import FOLDERS, bundle_fixture, counts, flat_folder, run_fixture, tree  # noqa: F401  # pytest finds them by their names
from PIL import Image
from stand_in_storage import FaultyFileSystem, faulty_fixture, hanging, put, raising  # noqa: F401  # likewise

from calibration import storage
from exporter import ExportPlan, export
from exporter.pipeline import export as steps_of_export
from exporter.verification.bench.pictures import picture_files
from exporter.verification.parity_toml import entries_from_toml
from exporter.verification.pictures import inputs_from_pictures, open_pictures
from runtimes import Bundle
from runtimes.errors import LowerError

Faulty = type[FaultyFileSystem]


@pytest.fixture(name="quick")
def quick_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)


@pytest.mark.parametrize("scheme", ["memory", "faulty"])
def test_eval_counts_the_same_by_url_and_by_folder(
    scheme: str, run: Any, bundle: Path, tmp_path: Path, faulty: Faulty
) -> None:
    folder, url = tree(tmp_path, FOLDERS), f"{scheme}://bucket/val"
    put(url, folder)
    local, remote = (run(bundle, "--data", data, "--json").json for data in (folder, url))
    assert remote["images"] == 40
    assert counts(remote | {"data": ""}) == counts(local | {"data": ""})
    assert remote["data"] == url


def test_eval_takes_labels_by_url_and_goes_on_from_a_folders_resume_file(
    run: Any, bundle: Path, tmp_path: Path, faulty: Faulty
) -> None:
    labels = flat_folder(tmp_path)
    (tmp_path / "val" / "labels.txt").write_text("\n".join(map(str, labels)))
    url = put("memory://flat", tmp_path / "val")
    resume = tmp_path / "resume.jsonl"
    local = run(
        bundle, "--data", tmp_path / "val", "--data-labels", tmp_path / "val" / "labels.txt", "--resume", resume
    )
    saved = resume.read_bytes()
    remote = run(bundle, "--data", url, "--data-labels", f"{url}/labels.txt", "--resume", resume)
    assert (local.code, remote.code) == (0, 0)
    assert resume.read_bytes() == saved


def test_storage_that_breaks_down_ends_eval_and_the_same_command_goes_on(
    run: Any, bundle: Path, tmp_path: Path, faulty: Faulty
) -> None:
    url = put("faulty://bucket/val", tree(tmp_path, FOLDERS))
    command = (bundle, "--data", url, "--resume", tmp_path / "resume.jsonl", "--json")
    last = sorted(faulty.store)[-1]
    faulty.faults["open", last] = raising(ConnectionResetError(104, "Connection reset by peer"))
    broken = run(*command)
    assert broken.code == 3
    assert f"cannot read faulty://{last}: [Errno 104] Connection reset by peer; check the network" in broken.error
    faulty.faults.clear()
    assert run(*command).json["images"] == 40


def test_a_picture_that_vanished_is_left_out_by_name(run: Any, bundle: Path, tmp_path: Path, faulty: Faulty) -> None:
    url = put("faulty://bucket/val", tree(tmp_path, FOLDERS, 101))
    lost = sorted(faulty.store)[50]
    faulty.faults["open", lost] = raising(FileNotFoundError(lost))
    answer = run(bundle, "--data", url, "--json").json
    assert (answer["images"], answer["unreadable"]) == (
        100,
        [f"cannot read the picture faulty://{lost}: there is no such file"],
    )


def test_check_gives_the_model_the_same_inputs_by_url_and_by_folder(
    bundle: Path, tmp_path: Path, faulty: Faulty
) -> None:
    folder, opened = tree(tmp_path, FOLDERS, 8), Bundle.open(bundle)
    local, remote = (open_pictures(opened, data, 6) for data in (str(folder), put("memory://few", folder)))
    assert (remote.names, remote.left_out) == (local.names, local.left_out)
    np.testing.assert_array_equal(remote.labels, local.labels)
    np.testing.assert_array_equal(inputs_from_pictures(opened, remote)[:], inputs_from_pictures(opened, local)[:])


def test_a_missing_package_and_a_hanging_store_end_with_exit_code_3(
    run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty, quick: None
) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    missing = run(bundle, "--data", "az://box/val")
    assert (missing.code, missing.out) == (3, "")
    assert missing.error.endswith("pip install 'resnet-export[storage]' adlfs")
    faulty.faults["info", "bucket"] = hanging(0.5)
    stuck = run(bundle, "--data", "faulty://bucket")
    assert (stuck.code, stuck.out) == (3, "")
    assert "expected an answer from faulty://bucket within 0 s, got none; check the network" in stuck.error


@pytest.mark.parametrize("options", [{}, {"min_agreement": 90}], ids=str)
def test_an_export_lists_its_pictures_once(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty
) -> None:
    """Those to calibrate on and those to prove with are told apart by their places in one listing."""
    url = put("faulty://bucket/val", tree(tmp_path, FOLDERS, 200))
    stop = raising(LowerError("the pictures are chosen"))
    monkeypatch.setattr(steps_of_export, "_trace", lambda *_: stop())
    plan = ExportPlan("resnet20", tmp_path / "out", precision="int8", data=url, calibration_images=64, **options)
    with pytest.raises(LowerError, match="the pictures are chosen"):
        export(plan)
    assert (faulty.asked["info"], faulty.asked["ls"]) == (1, 1 + len(FOLDERS))


def test_bench_copies_the_files_of_a_url_as_they_are(bundle: Path, tmp_path: Path, faulty: Faulty) -> None:
    (tmp_path / "photos").mkdir()
    for place in range(2):
        Image.new("RGB", (30, 20 + place)).save(tmp_path / "photos" / f"{place}.PNG")
    (tmp_path / "made").mkdir()
    found = picture_files(Bundle.open(bundle), put("memory://photos", tmp_path / "photos"), tmp_path / "made")
    assert found.paths == tuple(tmp_path / "made" / f"{place}.png" for place in range(2))
    for place, path in enumerate(found.paths):
        assert path.read_bytes() == (tmp_path / "photos" / f"{place}.PNG").read_bytes()


def test_a_url_in_a_file_of_bundles_is_no_path_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('data = "s3://bucket/val"\n[[bundles]]\npath = "a"\n')
    assert entries_from_toml(tmp_path / "fleet.toml")[0].settings.data == "s3://bucket/val"
