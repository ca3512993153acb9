"""Networks with parts that are dead, constant, tiny or huge come out of INT8 as good as others, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from bad_blocks import SIZE
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file

import exporter.models
from calibration.data import built_in, inputs_from_source
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.lower import LoweredGraph, lower
from exporter.lowering.output_error import output_error, outputs_of
from exporter.lowering.precisions import int8
from exporter.lowering.qdq.fit import SMALLEST_SCALE, SMALLEST_WEIGHT_SCALE, TOO_SMALL
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.request import LoweringRequest
from exporter.models.loading import load_model
from exporter.pipeline.plan import ExportPlan
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps

State = dict[str, torch.Tensor]
WORST_DB = 25.0


def scale_inner(state: State, block: str, factor: float) -> None:
    """What stands between a block's two convolutions is larger, and what reads it smaller by as much."""
    for part in ("weight", "bias"):
        state[f"{block}.bn1.{part}"] *= factor
    state[f"{block}.conv2.weight"] /= factor


def dead(state: State) -> None:
    """Channels inside blocks, and channels of a residual stream, whoever writes them, are zero for every picture."""
    inner = [(f"layer2.{block}.bn1", slice(None, None, 2)) for block in range(3)]
    stream = [(name, slice(4)) for name in ("bn1", *(f"layer1.{block}.bn2" for block in range(3)))]
    for name, channels in (*inner, *stream):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"][channels] = 0


def zero(state: State) -> None:
    """A convolution whose weights are zero, one whose input is, and a block that adds nothing."""
    state["layer1.1.conv1.weight"].zero_()
    for name in ("layer2.1.bn1", "layer3.1.bn2"):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"].zero_()


def constant(state: State) -> None:
    """What stands between two convolutions is the same for every picture and at every pixel; so are the logits."""
    state["layer2.1.bn1.weight"].zero_()
    state["layer2.1.bn1.bias"].fill_(3.0)
    state["fc.weight"].zero_()


def uneven(state: State) -> None:
    """Scales below FP16's normal range, values near its largest, and a channel a thousand times as large as the others,
    which still matter."""
    scale_inner(state, "layer2.1", 1e-4)
    scale_inner(state, "layer1.1", 3000)
    for part in ("weight", "bias"):
        state[f"layer3.0.bn1.{part}"][5] *= 1000
    state["layer3.0.conv2.weight"][:, 5] /= 1000


def changed(folder: Path, change: Callable[[State], None]) -> tuple[onnx.ModelProto, Preprocess]:
    """The FP32 graph of the shipped ResNet-20 with a change of its weights, and its preprocessing."""
    state = load_file(Path(exporter.models.__file__).parent / "assets" / "resnet20.safetensors")
    change(state)
    torch.save(state, folder / "changed.pt")
    plan = ExportPlan(
        "resnet20", folder / "out", "int8", str(folder / "changed.pt"), mean=(0.286,), std=(0.353,), data="built-in"
    )
    loaded = load_model(plan.model_request)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = onnx_from_program(program, opset=plan.opset, batch=plan.batch)
    return simplify(graph, np.zeros((1, 1, 28, 28), np.float32)), loaded.preprocess


def lowered(graph: onnx.ModelProto, preprocess: Preprocess, said: list[str] | None = None) -> LoweredGraph:
    images = CalibrationSet(built_in("train"), preprocess, as_pixels=False)
    steps = Steps(lambda step, done=0, total=0: None if said is None else said.append(step))
    return lower(graph, images, LoweringRequest("int8", calibration_images=128), steps)


@pytest.mark.parametrize("change", [dead, zero, constant, uneven])
def test_a_degenerate_network_is_as_good_as_another(tmp_path: Path, change: Callable[[State], None]) -> None:
    graph, preprocess = changed(tmp_path, change)
    found = lowered(graph, preprocess)
    inputs = inputs_from_source(built_in("test"), preprocess, 64)
    expected = outputs_of(graph, inputs)
    assert output_error(int8.simulation(found.model), inputs, expected).sqnr_db > WORST_DB
    assert output_error(found.exact, inputs, expected).sqnr_db > 90
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(found.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"input": inputs})[0]).all()
    assert found.sensitivity is not None
    assert np.isfinite([block.damage for block in found.sensitivity.blocks]).all()
    check_scales(found)


def check_scales(found: LoweredGraph) -> None:
    """Every scale is one that FP16 holds with digits enough, and every factor is positive and finite."""
    tensors = {tensor.name: tensor for tensor in found.model.graph.initializer}
    pairs = [node for node in found.model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(pairs) > 40
    for node in pairs:
        scale = tensors[node.input[1]]
        assert scale.data_type == TensorProto.FLOAT16
        values = numpy_helper.to_array(scale).astype(np.float32)
        assert np.isfinite(values).all()
        assert (values >= (SMALLEST_WEIGHT_SCALE if scale.dims else SMALLEST_SCALE)).all(), node.name
    for name, factors in found.factors.items():
        assert np.isfinite(factors).all(), name
        assert (factors > 0).all(), name


def below_fp16(state: State) -> None:
    """What stands between two convolutions is below FP16's normal numbers, and what it adds to the network is small."""
    scale_inner(state, "layer2.1", 1e-7)
    state["layer2.1.conv2.weight"] *= 1e-4


def beyond_fp16(state: State) -> None:
    """A whole residual stream, and the logits behind it, are beyond FP16's largest."""
    state["bn1.weight"] *= 1e6


def test_a_convolution_whose_input_fp16_cannot_scale_stays_in_float_and_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    graph, preprocess = changed(tmp_path, below_fp16)
    found = lowered(graph, preprocess, said)

    assert any(f"2 of 21 convolutions stay in float, layer2.1.conv1 the first: {TOO_SMALL}" in one for one in said)
    inputs = inputs_from_source(built_in("test"), preprocess, 64)
    assert output_error(int8.simulation(found.model), inputs, outputs_of(graph, inputs)).sqnr_db > WORST_DB


def test_what_half_precision_cannot_hold_is_refused_in_words(tmp_path: Path, run: Any) -> None:
    changed(tmp_path, beyond_fp16)
    ran = run(
        "resnet20", "--int8", "--weights", tmp_path / "changed.pt", *SIZE, "--data", "built-in", "--output", "out"
    )
    assert ran.code == 1
    assert "are beyond the precision's range for a picture of one colour; export in bf16 or fp32" in ran.error
    assert not (tmp_path / "out").exists()
