"""Metadata is read off an ONNX file without the package onnx, whatever the file holds."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from residual_graphs import residual

from runtimes.onnx_metadata import metadata_of

PROPS = {"precision": "int8", "kernels": "integers", "größe": "Ä" * 300, "empty": ""}


def test_what_onnx_wrote_is_read_from_the_file_and_from_its_content(tmp_path: Path) -> None:
    model = residual()
    assert metadata_of(model.SerializeToString()) == {}
    onnx.helper.set_model_props(model, PROPS)
    onnx.save(model, tmp_path / "model.onnx")
    assert metadata_of(tmp_path / "model.onnx") == PROPS
    assert metadata_of(model.SerializeToString()) == PROPS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 30,
        b"\x3a" + b"\xff" * 9 + b"\x7f",
        b"\x72" + b"\xff" * 9 + b"\x01",
        b"\x72\x0c\x0a" + b"\xff" * 9 + b"\x7f\x00",
        b"\x72\x05\x0a\x7fabc",
        b"\x0b\x0c",
        b"plain text, no model",
    ],
    ids=[
        "empty",
        "no number",
        "a graph beyond files",
        "an entry beyond files",
        "a key beyond files",
        "cut short",
        "groups",
        "text",
    ],
)
def test_of_a_file_that_is_none_as_much_as_can_be_read_is(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert set(metadata_of(path)) <= {""} | {"abc"}
    assert set(metadata_of(data)) <= {""} | {"abc"}
    assert metadata_of(tmp_path / "none.onnx") == {}
