"""INT8 graphs with some nodes in float: what is quantized, what is not, and what stays as it was."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest

from calibration.data import built_in, inputs_from_source
from exporter.graph.build import GraphForm, clean_graph
from exporter.graph.parts import named_blocks
from exporter.graph.probe import inner_tensors
from exporter.graph.trace import program_from_module
from exporter.lowering.precisions import fp16, int8
from exporter.lowering.qdq.lint import lint
from exporter.lowering.qdq.targets.tensorrt import place_pairs
from exporter.models.loading import load_model
from exporter.models.request import ModelRequest
from runtimes.progress import Steps
from runtimes.specs import BatchRange


@pytest.fixture(name="graph", scope="module")
def graph_fixture() -> onnx.ModelProto:
    """ResNet-18's FP32 graph, which has a max pool and widened shortcuts, at 64 pixels."""
    loaded = load_model(ModelRequest("resnet18", weights="random", image_size=(64, 64)))
    inputs = inputs_from_source(built_in("train"), loaded.preprocess, 2)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    return clean_graph(program, GraphForm(20, BatchRange(1, 2, 8), ("logits",)), loaded.preprocess, inputs, Steps())


def nodes_of(graph: onnx.ModelProto, *names: str) -> set[str]:
    named = named_blocks(graph.graph)
    return {graph.graph.node[place].name for name in names for place in named[name].nodes}


def lowered(graph: onnx.ModelProto, float_nodes: Collection[str] = ()) -> onnx.ModelProto:
    return int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 4.0), "tensorrt", float_nodes)


def int8_convolutions(model: onnx.ModelProto) -> set[str]:
    pairs = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all((node.input[0] in pairs) == (node.input[1] in pairs) for node in found)
    return {node.name for node in found if node.input[1] in pairs}


def test_the_convolutions_of_returned_blocks_are_in_fp16_and_all_others_in_int8(graph: onnx.ModelProto) -> None:
    every = int8_convolutions(lowered(graph))
    inside = nodes_of(graph, "stem", "layer2.0", "layer4.1")
    found = int8_convolutions(lowered(graph, inside))
    assert found == every - inside
    assert len(every) - len(found) == 1 + 3 + 2


def test_what_is_not_returned_has_the_same_weights_and_scales(graph: onnx.ModelProto) -> None:
    whole, some = lowered(graph), lowered(graph, nodes_of(graph, "layer2.0"))
    before = {tensor.name: tensor.raw_data for tensor in whole.graph.initializer}
    quantized = [tensor for tensor in some.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert quantized
    assert all(before[tensor.name] == tensor.raw_data for tensor in quantized)


def test_no_pair_is_left_that_nothing_reads(graph: onnx.ModelProto) -> None:
    model = lowered(graph, nodes_of(graph, "layer1.0", "layer3.0"))
    read = {name for node in model.graph.node for name in node.input}
    assert all(name in read for node in model.graph.node if "Linear" in node.op_type for name in node.output)
    assert {tensor.name for tensor in model.graph.initializer} <= read
    # The pool before layer1.0 no longer has a quantized reader, so it reads no pair either.
    (pool,) = (node for node in model.graph.node if node.op_type == "MaxPool")
    assert not pool.input[0].endswith(".dequantized")


def test_with_every_block_returned_it_is_the_graph_in_fp16(graph: onnx.ModelProto) -> None:
    model = lowered(graph, {node.name for node in graph.graph.node})
    assert not any("Linear" in node.op_type for node in model.graph.node)
    assert model == fp16.lower(graph, {})


def test_a_network_with_returned_blocks_computes_what_its_parts_do(graph: onnx.ModelProto) -> None:
    """Returning all but the last block leaves the error of the last block alone."""
    inputs = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    (exact,) = inner_tensors(graph, ["logits"], inputs).values()

    def error(*returned: str) -> float:
        simulation = int8.simulation(lowered(graph, nodes_of(graph, *returned)))
        return float(np.abs(inner_tensors(simulation, ["logits"], inputs)["logits"] - exact).max())

    names = [name for name in named_blocks(graph.graph) if name != "head"]
    assert error(*names) < error(*names[:-1]) < error()


def test_the_linter_refuses_nothing_of_it(graph: onnx.ModelProto) -> None:
    report = lint(lowered(graph, nodes_of(graph, "stem", "layer2.0", "layer4.1")))
    assert report is not None
    assert not report.refused
    assert report.convolutions == (20 - 6, 20)


def test_a_residual_addition_whose_branch_is_in_float_reads_no_pair(graph: onnx.ModelProto) -> None:
    branch = next(node for node in graph.graph.node if node.name.startswith("layer1.0.conv2"))
    placement = place_pairs(graph, {branch.name})
    additions = {node.name for node in graph.graph.node if node.op_type == "Add"}
    assert len([edge for edge in placement.edges if edge.node in additions]) == len(additions) - 1
