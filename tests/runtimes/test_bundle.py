"""Bundles: read and verified file by file, and written so that the old one or the new one is there at every moment."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.bundle import MANIFEST, Bundle, sha256_of_file
from runtimes.bundle_writing import staging_folder, write_in_one_step, write_manifest
from runtimes.errors import BundleError, PlanError
from runtimes.manifest import FileFacts, Manifest, json_from_manifest, manifest_from_json
from runtimes.parity.budget import Budget

FREE_KEYS = {
    "$.versions",
    "$.graph.operators",
    "$.graph.types",
    "$.graph.types[...]",
    "$.parity.backends",
    "$.parity.backends[...].outputs",
    "$.files",
}
"""Objects of the manifest whose keys are data, not field names."""
OPTIONAL = {
    "$.accuracy",
    "$.calibration",
    "$.files",
    "$.parity.budget",
    "$.parity.backends[...].outputs",
    "$.parity.backends[...].violations",
    "$.parity.backends[...].max_batch_difference",
    *(f"$.parity.budget.{name}" for name in Budget.__dataclass_fields__ if name != "own_error"),
}
NULLABLE = (
    OPTIONAL - {"$.files", "$.parity.budget", "$.parity.backends[...].violations", "$.parity.backends[...].outputs"}
) | {
    "$.preprocess.resize",
    "$.graph.macs",  # unknown for free sizes
    # What features do not have, and a single logit.
    *(f"$.parity.backends[...].{name}" for name in ("top1_agreement", "top5_overlap", "flips", "worst_cosine")),
}


LABELS = ("Trouser", "Königinpasteten", "top\u2028half", "cat\x85s", "form\x0cfeed", *"abcde")


def write(folder: Path, manifest: Manifest, *, text: str = "the model") -> Path:
    """A bundle of three files; their content is nobody's business but the manifest's."""
    (folder / "engines").mkdir(parents=True)
    (folder / "model.onnx").write_text(text)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    (folder / "engines" / "sm87.engine").write_bytes(b"\x00" * 100)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def bundle(manifest: Manifest, tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", manifest)


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON in place."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


def rename_file(bundle: Path, name: str) -> None:
    """Let the manifest call `model.onnx` something else."""

    def renamed(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"].pop("model.onnx")

    rewrite(bundle, renamed)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".partial-" in path.name)


# --- reading ---


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


def test_equal_manifests_give_equal_bytes_and_survive_the_round_trip(manifest: Manifest) -> None:
    data = json_from_manifest(manifest)
    assert data == json_from_manifest(dataclasses.replace(manifest))
    assert data.endswith(b"}\n")
    assert manifest_from_json(data, where="here") == manifest


def test_a_manifest_without_what_is_optional_is_read(manifest: Manifest) -> None:
    document = json.loads(json_from_manifest(manifest))
    del document["accuracy"], document["calibration"], document["files"]
    read = manifest_from_json(json.dumps(document).encode(), where="here")
    assert (read.accuracy, read.calibration, read.files) == (None, None, {})


def test_fields_that_a_later_writer_added_are_left_alone(bundle: Path) -> None:
    rewrite(bundle, lambda document: document.update(signature={"key": "later"}))
    assert Bundle.open(bundle).manifest.name == "tiny-fp32"


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_manifest_is_no_bundle(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = f"{tmp_path / name} is no bundle: cannot read manifest.json (No such file or directory); give the folder that resnet-export wrote"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(tmp_path / name)


def test_a_file_and_a_folder_in_the_manifests_place_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / MANIFEST).mkdir(parents=True)
    for name, reason in (("file", "Not a directory"), ("folder", "Is a directory")):
        with pytest.raises(
            BundleError, match=re.escape(f"{tmp_path / name} is no bundle: cannot read manifest.json ({reason})")
        ):
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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b'{"schema_version": 1',
        b'{"schema_version": 1}}',
        b'{"schema_version": 1, "name": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":' * 100_000,
        b"\x00" * 100,
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_a_manifest_that_is_no_json_object_is_named_with_what_came(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(
        BundleError,
        match=re.escape(f"{bundle / MANIFEST}: expected a JSON object, got: ") + ".+; export the bundle again",
    ):
        Bundle.open(bundle)


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, [1], 1.5])
def test_another_schema_version_is_refused_before_anything_else(bundle: Path, version: object) -> None:
    (bundle / MANIFEST).write_text(json.dumps({"schema_version": version}))
    with pytest.raises(
        BundleError, match=re.escape(f"{bundle / MANIFEST}: expected schema_version 1, got {version!r}; export again")
    ):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_model_without_inputs_or_outputs_is_none(bundle: Path, field: str) -> None:
    rewrite(bundle, lambda document: document.update({field: []}))
    with pytest.raises(BundleError, match="expected an input and an output, got"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["a\n::error::b", "a\x1b[31m"])
def test_a_name_that_could_do_more_than_be_shown_is_refused(bundle: Path, name: str) -> None:
    rewrite(bundle, lambda document: document.update(name=name))
    with pytest.raises(BundleError, match="expected a name of printable characters"):
        Bundle.open(bundle)


def test_no_schema_version_is_another_one(bundle: Path) -> None:
    rewrite(bundle, lambda document: document.pop("schema_version"))
    with pytest.raises(BundleError, match="expected schema_version 1, got None"):
        Bundle.open(bundle)


def places(document: Any, keys: tuple[Any, ...] = (), path: str = "$") -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """Every value in a JSON document: the keys that lead to it, the path that errors print, and the value."""
    if keys:
        yield keys, path, document
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*keys, key), f"{path}[...]" if path in FREE_KEYS else f"{path}.{key}")
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from places(value, (*keys, place), f"{path}[{place}]")


def replaced(document: Any, keys: tuple[Any, ...], value: object) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return copy


def wrong_values(path: str, value: object) -> list[object]:
    """Values of every JSON type that the field at `path` does not take."""
    kinds: dict[type, object] = {str: "text", int: 7, float: 0.5, bool: True, list: [], dict: {}, type(None): None}
    taken = {type(value)}
    if isinstance(value, float):
        taken.add(int)  # 1 is a float in JSON
    if isinstance(value, dict) and path not in FREE_KEYS:
        taken.discard(dict)  # an empty object lacks the fields
    if path in NULLABLE:
        taken.add(type(None))
    if ".shape[" in path:
        taken |= {int, str}  # a size or a name
    return [wrong for kind, wrong in kinds.items() if kind not in taken]


def test_a_wrong_type_in_any_field_is_named_by_its_path(manifest: Manifest) -> None:
    document = json.loads(json_from_manifest(manifest))
    tried, failures = 0, []
    for keys, path, value in places(document):
        for wrong in wrong_values(path, value):
            tried += 1
            try:
                manifest_from_json(json.dumps(replaced(document, keys, wrong)).encode(), where="MANIFEST")
                failures.append(f"{path} = {wrong!r} was taken")
            except BundleError as error:
                if not str(error).startswith("MANIFEST: ") or (
                    path != "$.schema_version" and f"`{path}`" not in str(error)
                ):
                    failures.append(f"{path} = {wrong!r} is called: {error}")
    assert failures == []
    assert tried > 300


def test_a_missing_field_is_named(manifest: Manifest) -> None:
    document = json.loads(json_from_manifest(manifest))
    tried = 0
    for keys, path, _ in places(document):
        if path.endswith("]") or path in OPTIONAL or path == "$.schema_version":
            continue
        tried += 1
        without = json.loads(json.dumps(document))
        inner = without
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        with pytest.raises(BundleError, match=re.escape(f"MANIFEST: Object missing required field `{keys[-1]}`")):
            manifest_from_json(json.dumps(without).encode(), where="MANIFEST")
    assert tried > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": {"min": 4, "opt": 2, "max": 8}}, "expected a batch range with 1 <= min <= opt <= max, got 4:2:8"),
        ({"batch": {"min": 0, "opt": 2, "max": 8}}, "got 0:2:8"),
        ({"preprocess": {"std": [0.0]}}, "expected finite means and positive standard deviations"),
        ({"preprocess": {"mean": [0.1, 0.2]}}, "expected one mean and one standard deviation per channel, got 2 and 1"),
        ({"preprocess": {"crop": [224]}}, "$.preprocess.crop"),
        (
            {"preprocess": {"interpolation": "magic"}},
            "expected an interpolation among nearest, bilinear, bicubic, lanczos, got 'magic'",
        ),
        ({"accuracy": {"interval": [0.1, 0.2, 0.3]}}, "$.accuracy.interval"),
        ({"model": {"weights": {"kind": "stolen", "sha256": ""}}}, "$.model.weights.kind"),
    ],
    ids=str,
)
def test_values_that_contradict_themselves_make_the_bundle_unreadable(
    bundle: Path, change: dict[str, Any], message: str
) -> None:
    def merge(document: dict[str, Any]) -> None:
        for name, value in change.items():
            document[name] = {**document[name], **value} if isinstance(value, dict) else value

    rewrite(bundle, merge)
    with pytest.raises(
        BundleError,
        match=re.escape(f"{bundle / MANIFEST}: ") + ".*" + re.escape(message) + ".*; export the bundle again",
    ):
        Bundle.open(bundle)


def test_numbers_that_json_cannot_hold_are_refused(bundle: Path) -> None:
    for word in ("NaN", "Infinity", "1e999"):
        text = (bundle / MANIFEST).read_text()
        assert '"sqnr_db": 60.0' in text
        (bundle / MANIFEST).write_text(text.replace('"sqnr_db": 60.0', f'"sqnr_db": {word}'))
        with pytest.raises(BundleError, match="export the bundle again"):
            Bundle.open(bundle)
        (bundle / MANIFEST).write_text(text)


# --- writing ---


def test_a_new_bundle_appears_whole_with_its_parent_folders(manifest: Manifest, tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "down" / "bundle"
    with staging_folder(destination, force=False) as folder:
        assert folder.parent == destination.parent  # the same file system, so that a rename is one step
        write(folder / "inner", manifest)
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
        assert not destination.exists()
    assert Bundle.open(destination).file("model.onnx").read_text() == "new"
    assert [path.name for path in destination.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_is_filled_without_force(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        write_manifest(folder, manifest)
    assert Bundle.open(tmp_path / "bundle").manifest.files == {}


def test_a_bundle_is_replaced_with_force_and_only_with_it(bundle: Path, manifest: Manifest) -> None:
    with (
        pytest.raises(PlanError, match=re.escape(f"{bundle} exists; give --force to replace it, or another --output")),
        staging_folder(bundle, force=False),
    ):
        pytest.fail("the block must not run")
    with staging_folder(bundle, force=True) as folder:
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
        assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    opened = Bundle.open(bundle)
    assert opened.file("model.onnx").read_text() == "new"
    assert set(opened.manifest.files) == {"model.onnx"}  # nothing of the old one
    assert leftovers(bundle.parent) == []


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_of_something_else_is_never_replaced(force: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with (
        pytest.raises(PlanError, match="thesis holds something else than a bundle; choose another --output"),
        staging_folder(tmp_path / "thesis", force=force),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 1}', '{"name": "my site", "start_url": "/"}', ""])
def test_a_folder_with_another_kind_of_manifest_is_never_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MANIFEST).write_text(text)  # as of a web app or an extension of a browser
    with (
        pytest.raises(PlanError, match="site holds something else than a bundle"),
        staging_folder(tmp_path / "site", force=True),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "site" / MANIFEST).read_text() == text


@pytest.mark.parametrize(
    "name", ["notes.txt", "engines/notes.txt", "engines/deep/other.engine", ".git/HEAD", "photos", ".hidden"]
)
def test_a_bundle_that_holds_a_strangers_file_is_not_replaced(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    if name == "photos":
        (bundle / name).symlink_to(bundle.parent)
    else:
        (bundle / name).write_text("years of work")
    with (
        pytest.raises(
            PlanError, match=re.escape(f"{bundle} holds {name}, which its manifest does not name; move it away")
        ),
        staging_folder(bundle, force=True),
    ):
        pytest.fail("the block must not run")
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"


def test_engines_that_were_built_in_a_bundle_go_with_it(bundle: Path, manifest: Manifest) -> None:
    for name in ("tensorrt-10.3-sm87-b1-8-32.engine", "tensorrt-10.3-sm87-b1-8-32.json", ".tensorrt.engine.partial-77"):
        (bundle / "engines" / name).write_text("built here")
    with staging_folder(bundle, force=True) as folder:
        write_manifest(folder, manifest)
    assert [path.name for path in bundle.iterdir()] == [MANIFEST]


@pytest.mark.parametrize("place", [".", "./", "..", "../work", "/", "sub/..", "sub/../.."])
@pytest.mark.parametrize("force", [True, False])
def test_the_current_folder_and_those_that_hold_it_are_refused(
    place: str, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(PlanError, match="is the current folder, or holds it"), staging_folder(Path(place), force=force):
        pytest.fail("the block must not run")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("kind", ["file", "link to a bundle", "broken link"])
def test_what_is_not_a_folder_is_never_replaced(kind: str, force: bool, bundle: Path) -> None:
    path = bundle.parent / "output"
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(bundle if kind == "link to a bundle" else "nowhere")
    with (
        pytest.raises(PlanError, match=re.escape(f"{path} is not a folder; choose another --output")),
        staging_folder(path, force=force),
    ):
        pytest.fail("the block must not run")
    assert path.is_file() if kind == "file" else path.is_symlink()


@pytest.mark.parametrize("below", ["file/bundle", "file/deep/down/bundle"])
def test_a_place_below_a_file_cannot_be_written(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = re.escape(f"cannot write {tmp_path / below}: ") + ".+; choose another --output"
    with pytest.raises(BundleError, match=message), staging_folder(tmp_path / below, force=False):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_too_long_for_the_file_system_cannot_be_written(length: int, tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="File name too long; choose another --output"),
        staging_folder(tmp_path / ("x" * length), force=False),
    ):
        pytest.fail("the block must not run")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses every write")
def test_a_file_system_that_refuses_new_folders_cannot_be_written() -> None:
    with (
        pytest.raises(BundleError, match="cannot write /proc/self/bundle: "),
        staging_folder(Path("/proc/self/bundle"), force=False),
    ):
        pytest.fail("the block must not run")


def fail_halfway(folder: Path, error: BaseException) -> None:
    (folder / "model.onnx").write_text("half of")
    raise error


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(PlanError("no"), PlanError), (KeyboardInterrupt(), KeyboardInterrupt), (OSError("disk on fire"), BundleError)],
)
@pytest.mark.parametrize("force", [True, False])
def test_a_failure_on_the_way_leaves_what_was_there_and_nothing_else(
    raised: BaseException, expected: type[BaseException], force: bool, bundle: Path, tmp_path: Path
) -> None:
    destination = bundle if force else tmp_path / "new"
    with pytest.raises(expected), staging_folder(destination, force=force) as folder:
        fail_halfway(folder, raised)
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def fill_up(folder: Path, file: str, manifest: Manifest) -> None:
    (folder / file).symlink_to("/dev/full")  # writing to it fails as writing to a full disk does
    if file == "model.onnx":
        (folder / file).write_bytes(b"\x00" * 100_000)
    write_manifest(folder, manifest)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("file", ["model.onnx", MANIFEST])
def test_a_full_disk_leaves_the_old_bundle_and_says_what_to_do(file: str, bundle: Path, manifest: Manifest) -> None:
    with pytest.raises(BundleError) as caught, staging_folder(bundle, force=True) as folder:
        fill_up(folder, file, manifest)
    assert (
        str(caught.value)
        == f"cannot write {bundle}: No space left on device; free some room, or choose another --output"
    )
    assert caught.value.exit_code == 1
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert leftovers(bundle.parent) == []


def no_library(name: None, use_errno: bool) -> Any:
    raise OSError("no C library here")


NO_EXCHANGE = {
    "no C library": no_library,
    "a C library without renameat2": lambda name, use_errno: SimpleNamespace(),
    "a file system that cannot exchange": lambda name, use_errno: SimpleNamespace(renameat2=lambda *arguments: -1),
}


@pytest.mark.parametrize("library", NO_EXCHANGE.values(), ids=NO_EXCHANGE)
def test_where_folders_cannot_be_exchanged_the_old_bundle_steps_aside(
    library: Callable[..., Any], bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)
    with staging_folder(bundle, force=True) as folder:
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
    opened = Bundle.open(bundle)
    assert opened.file("model.onnx").read_text() == "new"
    assert set(opened.manifest.files) == {"model.onnx"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_new_bundle_that_vanished_before_the_exchange_brings_the_old_one_back(bundle: Path) -> None:
    with (
        pytest.raises(BundleError, match=re.escape(f"cannot write {bundle}: No such file or directory")),
        staging_folder(bundle, force=True) as folder,
    ):
        shutil.rmtree(folder)  # as a cleaner of temporary files may
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, manifest: Manifest) -> None:
    destination = tmp_path / "bundle"
    script = (
        "import sys, time; from pathlib import Path; from runtimes.bundle_writing import staging_folder\n"
        "with staging_folder(Path(sys.argv[1]), force=False) as folder:\n"
        "    (folder / 'model.onnx').write_text('half of'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(destination)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (theirs,) = leftovers(tmp_path)
        with staging_folder(destination, force=False) as folder:
            write_manifest(folder, manifest)
            assert theirs in leftovers(tmp_path)  # the other still lives
        process.kill()
    assert leftovers(tmp_path) == [theirs]
    (tmp_path / f"{theirs}-old").mkdir()
    (tmp_path / f".other.partial-{'0' * 16}").mkdir()
    (tmp_path / ".bundle.partial-mine").mkdir()
    with staging_folder(destination, force=True) as folder:
        write_manifest(folder, manifest)
    assert leftovers(tmp_path) == [".bundle.partial-mine", f".other.partial-{'0' * 16}"]


def test_a_run_in_another_container_keeps_its_folder(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(process: int, signal: int) -> None:
        raise ProcessLookupError  # as the number of a process of another container, or machine, is

    monkeypatch.setattr(os, "kill", dead)
    with staging_folder(bundle, force=True) as theirs:
        (theirs / "model.onnx").write_text("theirs")
        with staging_folder(bundle, force=True) as ours:
            write_manifest(ours, manifest)
        write_manifest(theirs, manifest)
    assert Bundle.open(bundle).file("model.onnx").read_text() == "theirs"
    assert leftovers(bundle.parent) == []


def test_a_bundle_that_stepped_aside_for_one_that_never_came_is_kept(tmp_path: Path, manifest: Manifest) -> None:
    aside = write(tmp_path / f".bundle.partial-{'0' * 16}-old", manifest)
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        write_manifest(folder, manifest)
    assert Bundle.open(aside).file("model.onnx").read_text() == "the model"


def test_two_threads_that_write_one_file_leave_one_of_the_two(tmp_path: Path) -> None:
    texts = [bytes([letter]) * 300_000 for letter in b"ab"]
    for _ in range(20):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda text: write_in_one_step(tmp_path / "file", text), texts))
        assert (tmp_path / "file").read_bytes() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_run_of_an_earlier_version_left_is_no_obstacle(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / f".bundle.partial-{os.getpid()}" / "engines").mkdir(
        parents=True
    )  # it was called by the number of its process
    (tmp_path / f".bundle.partial-{10**30}").mkdir()
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        assert list(folder.iterdir()) == []
        write_manifest(folder, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
