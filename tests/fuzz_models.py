"""The readers of networks: checkpoints, ONNX files, and a server's answers."""

from __future__ import annotations

import argparse
import io
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from fuzz_bundles import MOST_ROWS, command
from fuzz_formats import spoilt_archive, spoilt_message, spoilt_pickle, spoilt_safetensors
from fuzz_mutate import spoilt_json
from fuzz_readers import PREPROCESS, Reader
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from exporter.graph.intake.read import read_model_file
from exporter.graph.intake.take import open_file, take_file
from exporter.models.checkpoints import state_from_file
from exporter.models.hugging_face import config_beside
from exporter.models.labels import labels_from_metadata
from runtimes.onnx_metadata import metadata_of

NETWORK = nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 4, 3), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 10)))


def checkpoint_readers() -> list[Reader]:
    state = NETWORK.state_dict()
    whole = {
        "state_dict": state,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }

    def saved(value: object, *, new: bool = True) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        return buffer.getvalue()

    zipped = [saved(state), saved(whole), saved({"model": state, "half": torch.zeros(2, dtype=torch.float16)})]
    old = [saved(state, new=False), saved(whole, new=False)]
    config = {"id2label": {str(place): f"kind {place}" for place in range(10)}, "hidden_act": "relu"}

    def beside(folder: Path, data: bytes) -> Path:
        (folder / "config.json").write_bytes(data)
        return folder / "model.safetensors"

    return [
        Reader("checkpoint zip", "c.pth", zipped, spoilt_archive(lambda _: spoilt_pickle), state_from_file),
        Reader("checkpoint pickle", "c.pt", old, spoilt_pickle, state_from_file),
        Reader("safetensors", "c.safetensors", [save(dict(state))], spoilt_safetensors, state_from_file),
        Reader(
            "config.json",
            "",
            [json.dumps(config).encode()],
            spoilt_json,
            config_beside,
            40,
            place=beside,
            named="config.json",
        ),
    ]


def onnx_readers(sample: Path) -> list[Reader]:
    """`sample` is a bundle, whose file is one of those that are spoilt."""
    seeds = [small_network(), small_network(quantized=True), small_network(branch=True)]
    files = [*seeds, (sample / "model.onnx").read_bytes()]

    def look(path: Path) -> None:
        command("inspect", path)
        command("inspect", path, "--json", "--dla")
        command("inspect", path, "--target", "cpu")

    def take(path: Path) -> None:
        opened = open_file(read_model_file(path))
        if (opened.image.batch or 1) <= MOST_ROWS:
            take_file(opened, path, PREPROCESS, opset=20)

    def elsewhere(folder: Path, data: bytes) -> Path:
        path = folder / "stored.onnx"
        path.write_bytes(data)
        (folder / "weights.bin").write_bytes(bytes(range(256)) * 8)
        return path

    def tell(path: Path) -> None:
        for text in metadata_of(path).values():
            labels_from_metadata(text)

    spoil = spoilt_message(onnx.ModelProto)
    stored = [_stored_elsewhere(seeds[0])]
    return [
        Reader("ONNX inspected", "model.onnx", files, spoil, look, 60),
        Reader("ONNX taken in", "model.onnx", seeds[:2], spoil, take, 25),
        Reader("ONNX weights elsewhere", "stored.onnx", stored, spoil, look, 40, place=elsewhere, named="weights.bin"),
        Reader("ONNX metadata", "model.onnx", files, spoil, tell, 40),
    ]


def small_network(*, quantized: bool = False, branch: bool = False) -> bytes:
    """A convolution, a mean and a classifier of grey pictures of 28x28."""
    rng = np.random.default_rng(1)
    arrays = {
        "w": rng.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "fc.w": rng.standard_normal((4, 10)).astype(np.float32),
        "fc.b": np.zeros(10, np.float32),
        "s": np.float32(0.1),
        "z": np.int8(0),
        "yes": np.array(True),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc"),
    ]
    if quantized:
        nodes[0:1] = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"),
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], "qw"),
            helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], "dqw"),
            helper.make_node("Conv", ["xd", "wd", "b"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        ]
    if branch:
        value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
        inner = helper.make_graph([helper.make_node("Relu", ["c"], ["t"], "inner")], "then", [], [value])
        nodes[1] = helper.make_node("If", ["yes"], ["r"], "if", then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"target": "tensorrt", "names": "{0: 'a', 1: 'b'}", "labels": "a, b"})
    return bytes(model.SerializeToString())


def _stored_elsewhere(data: bytes) -> bytes:
    model = onnx.load_model_from_string(data)
    for place, tensor in enumerate(model.graph.initializer):
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", str(place * 160)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())
