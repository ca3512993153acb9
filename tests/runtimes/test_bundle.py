"""Bundles are read and verified file by file; what is no bundle, or not the one that was written, is named."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from manifest_edits import rewrite_manifest
from small_bundles import LABELS, bundle_fixture  # noqa: F401  # pytest finds the fixture by its name

from runtimes.bundle import MANIFEST, Bundle, sha256_of_file
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BundleError
from runtimes.manifest import FileFacts, Manifest


def rename_file(bundle: Path, name: str) -> None:
    """Let the manifest call `model.onnx` something else."""

    def renamed(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"].pop("model.onnx")

    rewrite_manifest(bundle, renamed)


def test_a_bundle_opens_as_it_was_written(bundle: Path, manifest: Manifest) -> None:
    opened = Bundle.open(bundle)
    assert dataclasses.replace(opened.manifest, files={}) == dataclasses.replace(manifest, files={})
    assert set(opened.manifest.files) == {"model.onnx", "labels.txt", "engines/sm87.engine"}
    assert opened.manifest.files["engines/sm87.engine"] == FileFacts(
        sha256_of_file(bundle / "engines/sm87.engine"), 100
    )
    assert opened.file("model.onnx").read_text() == "the model"
    assert opened.labels == LABELS


def test_a_bundle_without_labels_has_none_and_a_file_it_lacks_is_named_beside_those_it_holds(
    manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_text("the model")
    write_manifest(tmp_path, manifest)
    opened = Bundle.open(tmp_path)
    assert opened.labels is None
    with pytest.raises(BundleError, match=re.escape(f"{tmp_path} has no reference.pt2; it holds model.onnx")):
        opened.file("reference.pt2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"caf\xe9\n" * 10, "expected UTF-8 text in labels.txt, got something else"),
        (b"a\n" * 9, "expected a line for each of the 10 classes in labels.txt, got 9"),
        (b"a\n" * 11, "expected a line for each of the 10 classes in labels.txt, got 11"),
        (b"", "got 0"),
    ],
)
def test_labels_that_are_none_are_a_damaged_bundles(manifest: Manifest, tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "labels.txt").write_bytes(text)
    write_manifest(tmp_path, manifest)
    with pytest.raises(BundleError, match=said) as raised:
        _ = Bundle.open(tmp_path).labels
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_labels_need_no_newline_at_the_end(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"a\r\nb\r\n" + b"c\n" * 7 + b"d")
    write_manifest(tmp_path, manifest)
    assert Bundle.open(tmp_path).labels == ("a", "b", *"ccccccc", "d")


def test_a_file_that_the_manifest_does_not_name_is_not_the_bundles(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="has no notes.txt"):
        Bundle.open(bundle).file("notes.txt")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "there is no such folder"), ("empty", "cannot read manifest.json (No such file or directory)")],
)
def test_a_folder_without_a_manifest_is_no_bundle(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = f"{tmp_path / name} is no bundle: {reason}; give the folder that resnet-export wrote"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(tmp_path / name)


def test_a_file_and_a_folder_in_the_manifests_place_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / MANIFEST).mkdir(parents=True)
    reasons = {"file": "it is a file", "folder": "cannot read manifest.json (Is a directory)"}
    for name, reason in reasons.items():
        with pytest.raises(BundleError, match=re.escape(f"{tmp_path / name} is no bundle: {reason}")):
            Bundle.open(tmp_path / name)


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "engines/sm87.engine"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=re.escape(f"{bundle}: {name} is missing; export or copy the bundle again")):
        Bundle.open(bundle)


def test_a_folder_in_a_files_place_is_a_missing_file(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(BundleError, match="model.onnx is missing"):
        Bundle.open(bundle)


def test_a_truncated_file_is_named_with_both_sizes(bundle: Path) -> None:
    os.truncate(bundle / "engines" / "sm87.engine", 60)
    with pytest.raises(
        BundleError,
        match=re.escape("engines/sm87.engine was changed: expected 100 bytes, got 60; export or copy the bundle again"),
    ):
        Bundle.open(bundle)


def test_one_changed_bit_is_found_in_a_file_of_the_right_size(bundle: Path) -> None:
    (bundle / "engines" / "sm87.engine").write_bytes(b"\x00" * 99 + b"\x01")
    with pytest.raises(BundleError, match="engines/sm87.engine was changed: its sha256 is not the manifest's"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../outside.onnx", "engines/../../outside.onnx", "engines/../model.onnx", ".."])
def test_a_name_that_climbs_out_of_the_folder_is_refused(bundle: Path, name: str) -> None:
    shutil.copy(bundle / "model.onnx", bundle.parent / "outside.onnx")  # there, and with the right content
    rename_file(bundle, name)
    with pytest.raises(
        BundleError, match=re.escape(f"{bundle}: {name} lies outside the bundle; do not use this bundle")
    ):
        Bundle.open(bundle)


def test_an_absolute_name_is_refused_even_inside_the_folder(bundle: Path) -> None:
    rename_file(bundle, str(bundle / "model.onnx"))
    with pytest.raises(BundleError, match="model.onnx lies outside the bundle"):
        Bundle.open(bundle)


def test_a_bundle_of_links_opens_as_a_hubs_cache_keeps_it(bundle: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--me--net" / "blobs", tmp_path / "models--me--net" / "snapshots" / "abc"
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        blob, link = blobs / sha256_of_file(path), snapshot / path.relative_to(bundle)
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert Bundle.open(snapshot).file("model.onnx").read_text() == "the model"
    (blobs / sha256_of_file(snapshot / "model.onnx")).write_text("the modem")
    with pytest.raises(BundleError, match="model.onnx was changed: its sha256 is not the manifest's"):
        Bundle.open(snapshot)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", "a pipe"])
@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_a_link_to_what_never_ends_is_not_followed(bundle: Path, name: str, target: str) -> None:
    if target == "a pipe":
        target = str(bundle.parent / "pipe")
        os.mkfifo(target)
    (bundle / name).unlink()
    (bundle / name).symlink_to(target)
    with pytest.raises(BundleError, match="is missing|was changed|is no bundle|expected a JSON object"):
        Bundle.open(bundle)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle / "weights.bin")
    (bundle / "model.onnx").symlink_to("weights.bin")
    (bundle.parent / "latest").symlink_to(bundle)
    assert Bundle.open(bundle.parent / "latest").file("model.onnx").read_text() == "the model"


@pytest.mark.parametrize(
    "name",
    ["model\x00.onnx", "x" * 300, "model.onnx/inside", "", "."],
    ids=["nul", "long", "below a file", "empty", "dot"],
)
def test_a_name_that_no_file_can_have_makes_the_bundle_unreadable(bundle: Path, name: str) -> None:
    rename_file(bundle, name)
    with pytest.raises(BundleError, match="cannot read|is missing") as caught:
        Bundle.open(bundle)
    assert str(bundle) in str(caught.value)


def test_links_in_a_circle_make_the_bundle_unreadable(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("other.onnx")
    (bundle / "other.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match="model.onnx"):
        Bundle.open(bundle)
