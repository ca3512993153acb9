"""The Q/DQ linter on our own graphs and those of onnxruntime's quantizer, against TensorRT-RTX's parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from exporter import ExportPlan
from exporter.graph.blocks import blocks
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.precisions import int8
from exporter.lowering.qdq.biases import with_biases_inside
from exporter.lowering.qdq.lint import QdqReport, lint
from exporter.models.loading import load_model
from runtimes.nvidia.log import log_of

INPUTS = np.random.default_rng(0).standard_normal((4, 1, 28, 28), dtype=np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    plan = ExportPlan("resnet20", tmp_path_factory.mktemp("lint"), weights="random")
    program = program_from_module(load_model(plan.model_request).module, (1, 28, 28))
    return simplify(onnx_from_program(program, opset=20, batch=plan.batch), INPUTS)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """One batch."""

    def __init__(self) -> None:
        self.batches = iter([{"input": INPUTS}])

    def get_next(self) -> Any:
        return next(self.batches, None)


def theirs(graph: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    """The graph as onnxruntime's quantizer writes it."""
    onnx.save(graph, folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "quantized.onnx", Reader(), **options)
    return onnx.load(folder / "quantized.onnx")


def is_parsed(model: onnx.ModelProto) -> bool:
    """Does TensorRT-RTX's parser take the graph?"""
    logger = log_of(trt).logger
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return bool(trt.OnnxParser(network, logger).parse(model.SerializeToString()))


def checked(model: onnx.ModelProto) -> QdqReport:
    report = lint(model)
    assert report is not None
    assert report.refused != is_parsed(model)
    return report


def test_a_float_graph_has_no_report(graph: onnx.ModelProto) -> None:
    assert lint(graph) is None


def test_our_graph_is_taken_and_fused_everywhere(graph: onnx.ModelProto) -> None:
    report = checked(int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0)))
    assert (report.convolutions, report.shortcuts, report.findings) == ((21, 21), (9, 9), ())


def test_every_block_has_its_line(graph: onnx.ModelProto) -> None:
    report = checked(int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0)))
    names = ["stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)), "head"]
    assert [block.name for block in report.blocks] == names
    assert [block.convolutions for block in report.blocks] == [
        (1, 1),
        *((3, 3) if name in ("layer2.0", "layer3.0") else (2, 2) for name in names[1:-1]),
        (0, 0),
    ]
    assert [block.shortcut for block in report.blocks] == [None, *[True] * 9, None]


def test_the_blocks_hold_every_node_once(graph: onnx.ModelProto, tmp_path: Path) -> None:
    for model in (graph, int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0)), theirs(graph, tmp_path)):
        places = [place for block in blocks(model.graph) for place in block.nodes]
        assert sorted(places) == list(range(len(model.graph.node)))
        inside = {
            model.graph.node[place].name
            for block in blocks(model.graph)
            if block.name == "layer2.0"
            for place in block.nodes
        }
        relus = {
            node.name for node in model.graph.node if node.op_type == "Relu" and node.name.startswith("layer2.0")
        }  # onnxruntime folds them away
        assert {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer2.0.add", *relus} <= inside


def test_blocks_of_names_with_slashes_or_none_are_named_too(graph: onnx.ModelProto) -> None:
    slashes, nameless = onnx.ModelProto(), onnx.ModelProto()
    slashes.CopyFrom(graph)
    nameless.CopyFrom(graph)
    for node in slashes.graph.node:
        node.name = "/" + node.name.replace(".", "/")
    for node in nameless.graph.node:
        node.name = ""
    assert blocks(slashes.graph)[1].name == "/layer1/0"
    assert blocks(nameless.graph)[1].name == next(
        node.output[0] for node in nameless.graph.node if node.op_type == "Add"
    )


def test_onnxruntimes_defaults_are_refused_for_their_biases(graph: onnx.ModelProto, tmp_path: Path) -> None:
    report = checked(theirs(graph, tmp_path))
    messages = {finding.message for finding in report.findings if finding.kind == "refused"}
    assert any("INT32 (a quantized bias)" in message for message in messages)
    assert any("is not zero; quantize symmetrically" in message for message in messages)


def test_onnxruntimes_symmetric_graph_is_taken_but_fused_badly(graph: onnx.ModelProto, tmp_path: Path) -> None:
    extra = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "ForceQuantizeNoInputCheck": True,
    }
    report = checked(
        theirs(
            graph,
            tmp_path,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options=extra,
        )
    )
    said = {(finding.node, finding.message.split(";")[0]) for finding in report.findings}
    assert ("layer1.0.add", "both inputs are quantized, so the convolution before it cannot take it in") in said
    assert not report.refused
    assert report.convolutions == (21, 21)


def test_the_qoperator_format_is_refused(graph: onnx.ModelProto, tmp_path: Path) -> None:
    report = checked(theirs(graph, tmp_path, quant_format=QuantFormat.QOperator))
    assert any("QLinearConv is not supported" in finding.message for finding in report.findings)


@pytest.mark.parametrize("where", ["inside", "behind"])
def test_a_bias_of_another_type_is_refused_by_its_nodes_name(graph: onnx.ModelProto, where: str) -> None:
    model = int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0))
    model, name, node = {
        "inside": (with_biases_inside(model), "layer1.0.conv1.bias_inside", "layer1.0.conv1"),
        "behind": (model, "layer1.0.conv1.bias_per_channel", "layer1.0.conv1.add_bias"),
    }[where]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias).astype(np.float32), bias.name))
    report = checked(model)
    assert [(finding.node, finding.kind) for finding in report.findings] == [(node, "refused")]
    assert "FLOAT and FLOAT16" in report.findings[0].message


def test_misplaced_pairs_are_named(graph: onnx.ModelProto) -> None:
    model = int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0))
    for node in model.graph.node:
        if node.name == "layer1.0.add":  # the shortcut in float again
            node.input[:] = [name.removesuffix(".dequantized") for name in node.input]
        if node.name == "layer1.1.conv1":  # a convolution in float again
            node.input[0] = node.input[0].removesuffix(".dequantized")
    report = checked(model)
    assert {finding.node: finding.message.split(";")[0].split(":")[0] for finding in report.findings} == {
        "layer1.0.add": "the shortcut is not quantized, so the addition runs in float",
        "layer1.1.conv1": "runs in float",
    }
    assert (report.convolutions, report.shortcuts) == ((20, 21), (8, 9))
    assert {block.name: block.findings[0].node for block in report.blocks if block.findings} == {
        "layer1.0": "layer1.0.add",
        "layer1.1": "layer1.1.conv1",
    }
