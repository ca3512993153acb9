"""A small graph and a folder of pictures, to count the graph's tensors on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.counting import SHARD, OpenCounter
from calibration.data import built_in, open_source
from runtimes.preprocess import Preprocess

GREY = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))
COUNT = 3 * SHARD + 5
TENSORS = ("input", "sum", "positive")


def small_graph() -> onnx.ModelProto:
    """input -> sum = conv(input) -> positive = relu(sum)."""
    filters = np.random.default_rng(0).standard_normal((4, 1, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "filters"], ["sum"]), helper.make_node("Relu", ["sum"], ["positive"])],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["batch", 4, 26, 26])],
        [numpy_helper.from_array(filters, "filters")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def counting_task(folder: Path) -> OpenCounter:
    """To count on COUNT pictures, which are written to a folder; one cannot be read."""
    folder.mkdir(exist_ok=True)
    train = built_in("train")
    for place in range(COUNT):
        train.image(place).save(folder / f"{place:03}.png")
    (folder / "040.png").write_bytes(b"torn")
    return OpenCounter(open_source(str(folder)), GREY, small_graph(), TENSORS, as_pixels=False)
