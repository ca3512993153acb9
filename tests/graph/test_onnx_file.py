"""`resnet-deploy inspect FILE.onnx` on files of other makes: large, with weights elsewhere, broken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import qdq_graphs
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
LARGE = 2_200_000_000


def with_weights_beside(folder: Path, rows: int) -> Path:
    """A classifier of 16 features whose weight is in a file beside it, which is sparse on the disk."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[rows, 16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.data"), ("offset", "0"), ("length", str(rows * 64))):
        weight.external_data.add(key=key, value=value)
    with (folder / "weights.data").open("wb") as file:
        file.truncate(rows * 64)
    ends = [helper.make_tensor_value_info("x", FLOAT, (1, 16)), helper.make_tensor_value_info("y", FLOAT, (1, rows))]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "graph", ends[:1], ends[1:], [weight]
    )
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture
def inspect(deploy: Any) -> Any:
    return lambda path, *options: deploy("inspect", path, *options)


def test_weights_above_two_gigabytes_are_counted_without_being_read(inspect: Any, tmp_path: Path) -> None:
    rows = LARGE // 64
    shown = inspect(with_weights_beside(tmp_path, rows), "--json")
    assert shown.code == 0
    assert (shown.json["graph"]["parameters"], shown.json["graph"]["macs"]) == (rows * 16, rows * 16)


def test_weights_that_are_missing_or_cut_short_are_told_by_file(inspect: Any, tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path, 64)
    assert inspect(path).code == 0
    os.truncate(tmp_path / "weights.data", 100)
    shown = inspect(path)
    assert (shown.code, "expected at least 4096 bytes in " in shown.error, shown.err.count("\n")) == (2, True, 1)
    (tmp_path / "weights.data").unlink()
    shown = inspect(path)
    assert (shown.code, "got nothing there; put that file beside it" in shown.error, shown.err.count("\n")) == (
        2,
        True,
        1,
    )


@pytest.mark.parametrize("location", ["../weights.data", "/etc/passwd", ""])
def test_weights_elsewhere_than_beside_the_model_are_not_read(inspect: Any, tmp_path: Path, location: str) -> None:
    path = with_weights_beside(tmp_path, 64)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    shown = inspect(path)
    assert (shown.code, "in a file beside it" in shown.error) == (2, True)


def test_scales_in_a_file_beside_the_model_are_read(inspect: Any, tmp_path: Path) -> None:
    model = qdq_graphs.convolved(lambda graph: graph.pair("x", zero=np.int8(3)))
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_param="free")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="all.data", size_threshold=0)
    shown = inspect(tmp_path / "model.onnx")
    assert "TensorRT refuses this graph" in shown.out
    assert "is not zero" in shown.out


def test_what_onnxruntime_alone_gets_wrong_is_told_beside_what_tensorrt_takes(inspect: Any, tmp_path: Path) -> None:
    model = qdq_graphs.convolved(
        qdq_graphs.half_pair,
        qdq_graphs.half_weight,
        bias=lambda graph: graph.constant(np.full(qdq_graphs.ROWS, 60, np.float16)),
        behind=lambda graph, output: graph.pair(graph.node("Relu", output), np.float16(1)),
        takes=qdq_graphs.HALF,
        gives=qdq_graphs.HALF,
    )
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "model.onnx")
    shown = inspect(tmp_path / "model.onnx").out
    assert "TensorRT takes this graph; a plain session of onnxruntime computes other values" in shown
    assert "1 of 1 convolutions INT8, fuses, but for:" in shown
    assert f"other values in onnxruntime: Conv of '{model.graph.node[3].output[0]}': a plain session" in shown
    assert "INT32 with a scale of FP16, and is wrong in 32 of 32 channels; add the bias behind it" in shown


@pytest.mark.parametrize("content", ["junk", "empty", "cut", "no graph", "sparse", "folder", "nothing"])
def test_what_is_no_model_is_told_in_one_line(inspect: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.onnx"
    whole = with_weights_beside(tmp_path, 64).read_bytes()
    path.write_bytes(
        {
            "junk": b"junk",
            "empty": b"",
            "cut": whole[:-20],
            "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
        }.get(content, b"")
    )
    if content == "sparse":
        os.truncate(path, 3 << 30)
    shown = inspect(path if content not in ("folder", "nothing") else tmp_path / content)
    assert (shown.code in (1, 2), shown.err.count("\n"), shown.out) == (True, 1, "")
    if content not in ("folder", "nothing"):
        assert shown.code == 2
        assert "is no ONNX model" in shown.error


def test_what_is_not_known_is_said_to_be_unknown(inspect: Any, tmp_path: Path) -> None:
    model = qdq_graphs.convolved(shape=("n", 16, "height", "width"))
    model.graph.output[0].type.tensor_type.shape.dim.add()
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    onnx.save(model, tmp_path / "model.onnx")
    shown = inspect(tmp_path / "model.onnx")
    assert "unknown GMACs" in shown.out
    assert inspect(tmp_path / "model.onnx", "--json").json["graph"]["macs"] is None
