"""`resnet-deploy check`: golden files that are none and options that do not fit, each refused in one line."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from spoilt import replace_file


def test_an_unknown_backend_is_told_the_nearest(run: Any, bundle: Path) -> None:
    shown = run("check", bundle, "--backend", "onnx-runtime")
    assert shown.code == 2
    assert "did you mean onnxruntime" in shown.error


@pytest.mark.parametrize("data", [b"", b"rubbish"])
def test_a_golden_file_that_is_none_is_named(run: Any, bundle: Path, data: bytes) -> None:
    replace_file(bundle, "golden.npz", data)
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
        replace_file(bundle, "golden.npz", file.getvalue())
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
        replace_file(bundle, "golden.npz", file.getvalue())
        shown = run("check", bundle, "--backend", "onnxruntime")
        assert (shown.code, f"golden.npz is of another model: {said}" in shown.err) == (1, True)
