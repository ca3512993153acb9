"""The Triton server of the slow tests itself: it starts, and runs an ONNX file as its library does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from triton_server import ServerEnded, need_server, triton_server

pytestmark = pytest.mark.slow

CONFIG = """name: "double"
backend: "onnxruntime"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }]
"""


def doubling(folder: Path) -> None:
    """A repository of one model that doubles three numbers."""
    (folder / "double" / "1").mkdir(parents=True)
    (folder / "double" / "config.pbtxt").write_text(CONFIG)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "double" / "1" / "model.onnx")


def test_a_server_runs_a_model(tmp_path: Path) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput

    need_server()
    doubling(tmp_path / "models")
    with (
        triton_server(tmp_path / "models", tmp_path / "log.txt") as server,
        InferenceServerClient(server.grpc) as client,
    ):
        given = np.arange(6, dtype=np.float32).reshape(2, 3)
        fed = InferInput("x", [2, 3], "FP32")
        fed.set_data_from_numpy(given)
        answer = client.infer("double", [fed]).as_numpy("y")
        assert b"nv_inference_count" in server.get("/metrics", server=server.metrics)
    np.testing.assert_array_equal(answer, 2 * given)
    assert server.process.returncode == 0


def test_a_broken_repository_is_said_with_the_servers_words(tmp_path: Path) -> None:
    need_server()
    doubling(tmp_path / "models")
    (tmp_path / "models" / "double" / "config.pbtxt").write_text(CONFIG.replace("TYPE_FP32", "TYPE_FP33"))
    with pytest.raises(ServerEnded, match="TYPE_FP33"), triton_server(tmp_path / "models", tmp_path / "log.txt"):
        pass
