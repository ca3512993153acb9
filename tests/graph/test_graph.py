"""What is counted of a graph of any origin: operators, parameters, multiply-accumulates."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.counts import graph_facts

FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def model(
    nodes: list[onnx.NodeProto], source: tuple[Any, ...], constants: list[TensorProto], **more: Any
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", FLOAT, source), *more.pop("inputs", [])]
    graph = helper.make_graph(nodes, "graph", inputs, [helper.make_tensor_value_info("y", FLOAT, None)], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


CONV = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
IMAGE = (1, 16, 32, 32)
WORK = 32 * 32 * 32 * 16 * 9


@pytest.mark.parametrize("batch", ["n", None, 1, 4])
def test_work_is_that_of_one_image_whatever_the_batch_is_called(batch: str | int | None) -> None:
    facts = graph_facts(model([CONV], (batch, *IMAGE[1:]), [weight("w", 32, 16, 3, 3)]))
    assert (facts.nodes, facts.parameters, facts.macs) == (1, 4608, WORK)


@pytest.mark.parametrize("size", ["height", None])
def test_work_of_free_sizes_is_not_known(size: str | None) -> None:
    assert graph_facts(model([CONV], ("n", 16, size, 32), [weight("w", 32, 16, 3, 3)])).macs is None


def test_weights_count_wherever_they_stand() -> None:
    held = helper.make_node("Constant", [], ["w"], value=weight("w", 32, 16, 3, 3))
    assert graph_facts(model([held, CONV], IMAGE, [])).parameters == 4608
    beside = [helper.make_tensor_value_info("w", FLOAT, (32, 16, 3, 3))]  # as up to IR 3
    facts = graph_facts(model([CONV], IMAGE, [weight("w", 32, 16, 3, 3)], inputs=beside))
    assert (facts.parameters, facts.macs) == (4608, WORK)


def test_a_transposed_convolution_works_at_each_of_its_inputs() -> None:
    up = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    facts = graph_facts(model([up], IMAGE, [weight("w", 16, 8, 2, 2)]))
    assert (facts.parameters, facts.macs) == (512, 32 * 32 * 16 * 8 * 2 * 2)


def test_an_integer_convolution_counts_as_one() -> None:
    constants = [numpy_helper.from_array(np.ones((32, 16, 3, 3), np.uint8), "w")]
    constants += [
        numpy_helper.from_array(np.array(1, kind), name) for name, kind in (("s", np.float32), ("z", np.uint8))
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"], pads=[1] * 4),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    facts = graph_facts(model(nodes, IMAGE, constants))
    assert (facts.parameters, facts.macs) == (4608 + 2, WORK)


def test_a_product_of_two_computed_tensors_counts_its_whole_length() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    assert graph_facts(model(nodes, ("n", 7, 5), [])).macs == 7 * 7 * 5
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    assert graph_facts(model([gemm], ("n", 16), [weight("w", 10, 16)])).macs == 160


def test_functions_and_the_graphs_inside_of_nodes_count_too() -> None:
    function = helper.make_function("local", "Net", ["x", "w"], ["y"], [CONV], [helper.make_opsetid("", 17)])
    call = helper.make_node("Net", ["x", "w"], ["y"], domain="local")
    facts = graph_facts(model([call], IMAGE, [weight("w", 32, 16, 3, 3)], functions=[function]))
    assert (facts.operators, facts.parameters, facts.macs) == ({"Conv": 1}, 4608, WORK)

    def branch(name: str, channels: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Relu", ["x"], [f"{name}.r"]),
            helper.make_node("Conv", [f"{name}.r", f"{name}.w"], [f"{name}.c"], pads=[1] * 4),
            helper.make_node("Relu", [f"{name}.c"], [f"{name}.y"]),
        ]
        end = helper.make_tensor_value_info(f"{name}.y", FLOAT, None)
        return helper.make_graph(nodes, name, [], [end], [weight(f"{name}.w", channels, 16, 3, 3)])

    condition = [helper.make_tensor_value_info("which", TensorProto.BOOL, ())]
    for channels, work in ((32, WORK), (8, None)):  # which of two is done is not known
        node = helper.make_node(
            "If", ["which"], ["y"], then_branch=branch("then", 32), else_branch=branch("else", channels)
        )
        facts = graph_facts(model([node], IMAGE, [], inputs=condition))
        assert (facts.operators, facts.macs) == ({"Conv": 2, "If": 1, "Relu": 4}, work)
        assert facts.types["Conv"] == {"FLOAT": 2}
        assert facts.parameters == (32 + channels) * 16 * 9


def test_operators_that_are_not_counted_make_the_work_unknown_and_not_zero() -> None:
    fused = helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation="Relu")
    assert graph_facts(model([fused], IMAGE, [weight("w", 32, 16, 3, 3)])).macs is None
