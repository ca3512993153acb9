"""Whether a classifier is quantized is measured, and what was found is kept in the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cpu_graphs import ranges_of
from onnx import numpy_helper
from residual_graphs import INPUTS, residual

from calibration.data import built_in
from exporter.graph.parts import named_blocks
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering import repairs
from exporter.lowering.lower import LoweredGraph, lower
from exporter.lowering.qdq.integer_nodes import kernel_count
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.repairs import Bench, Heads, choose_heads
from exporter.lowering.request import LoweringRequest
from exporter.models.loading import load_model
from exporter.pipeline.plan import ExportPlan
from runtimes.kernels import KernelCount
from runtimes.progress import Steps

PROMISED = KernelCount(21, 21, 9, 9)


def choice(graph: onnx.ModelProto, target: str = "cpu") -> Heads:
    return choose_heads(graph, ranges_of(graph, target), Bench.of(graph, target, INPUTS))


@pytest.mark.parametrize(
    ("enough", "little", "said"),
    [
        (40, 1, "left the classifier in float: integers would have cost 34.0 -> 32.8 dB"),
        (40, 2, "quantized the classifier: 34.0 -> 32.8 dB"),
        (30, 1, "quantized the classifier: 34.0 -> 32.8 dB"),
    ],
    ids=["costs too much", "costs little", "leaves enough"],
)
def test_a_classifier_is_quantized_where_that_leaves_enough_or_costs_little(
    enough: float, little: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "ENOUGH_DB", enough)
    monkeypatch.setattr(repairs, "LITTLE_DB", little)
    found = choice(residual())
    assert found == (frozenset() if said.startswith("quantized") else {"fc"}, said)
    assert choice(residual(), "tensorrt") == (frozenset(), "")


def test_a_classifier_whose_rows_have_one_large_weight_stays_in_float() -> None:
    """It is that of a dead channel, so that it adds nothing, and takes all steps of its row."""
    graph = residual()
    for tensor in graph.graph.initializer:
        changed = numpy_helper.to_array(tensor).copy()
        if tensor.name == "Bstem":
            changed[0] = -1.0
        elif tensor.name in ("Wstem", "Wb"):
            changed[0] = 0.0
        elif tensor.name == "Wfc":
            changed[:, 0] = 1e4
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    in_float, said = choice(graph)
    assert in_float == {"fc"}
    assert said.startswith("left the classifier in float: integers would have cost ")


@pytest.fixture(name="network", scope="module")
def network_fixture() -> tuple[onnx.ModelProto, CalibrationSet]:
    plan = ExportPlan("resnet20", Path("unused"), precision="int8", target="cpu")
    loaded = load_model(plan.model_request)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = simplify(
        onnx_from_program(program, opset=plan.opset, batch=plan.batch), np.zeros((1, 1, 28, 28), np.float32)
    )
    return graph, CalibrationSet(built_in("train"), loaded.preprocess, as_pixels=False)


def classifier_type(lowered: LoweredGraph) -> str:
    made = {node.output[0]: node.op_type for node in lowered.model.graph.node}
    (fc,) = (node for node in lowered.model.graph.node if node.op_type == "Gemm")
    return str(made.get(fc.input[1], "float"))


def test_a_table_repeats_what_was_chosen_without_pictures(
    network: tuple[onnx.ModelProto, CalibrationSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, images = network
    request = LoweringRequest("int8", "cpu", calibration_images=128)
    monkeypatch.setattr(repairs, "LITTLE_DB", 3.0)
    quantized = lower(graph, images, request, Steps())
    monkeypatch.setattr(repairs, "ENOUGH_DB", 200.0)
    monkeypatch.setattr(repairs, "LITTLE_DB", 0.0)
    in_float = lower(graph, images, request, Steps())
    assert [classifier_type(one) for one in (quantized, in_float)] == ["DequantizeLinear", "float"]
    for found, nodes in ((quantized, []), (in_float, ["fc"])):
        assert found.table is not None
        assert found.table.float_nodes == nodes
        assert "fc" in found.table.corrections[found.table.calibrator]
        assert kernel_count(found.model) == PROMISED
        path = tmp_path / "calibration.json"
        path.write_bytes(found.table.json())
        again = lower(
            graph,
            CalibrationSet(None, images.preprocess, as_pixels=False),
            LoweringRequest("int8", "cpu", calibration=path),
            Steps(),
        )
        assert again.table == found.table
        assert again.model.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)


def test_the_head_is_a_block_to_return_to_float_and_its_return_leaves_all_additions_on_integers(
    network: tuple[onnx.ModelProto, CalibrationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, images = network
    monkeypatch.setattr(repairs, "LITTLE_DB", 3.0)
    lowered = lower(graph, images, LoweringRequest("int8", "cpu", calibration_images=128), Steps())
    assert lowered.sensitivity is not None
    assert {one.name: one.macs for one in lowered.sensitivity.blocks}["head"] == 64 * 10
    assert lowered.with_float_nodes is not None
    head = named_blocks(graph.graph)["head"]
    returned = lowered.with_float_nodes({graph.graph.node[place].name for place in head.nodes})
    assert classifier_type(returned) == "float"
    assert kernel_count(returned.model) == PROMISED
