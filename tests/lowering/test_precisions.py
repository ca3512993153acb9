"""Lowering retypes the graph and nothing else, refuses what does not fit, and is simulated as devices round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.data import built_in, inputs_from_source
from exporter import ExportPlan
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering import precisions
from exporter.lowering.precisions import fp16
from exporter.lowering.precisions._cast import cast_graph
from exporter.models.loading import load_model
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.prove import _name_overflow
from runtimes import BatchRange, backend_names, open_runtime
from runtimes._plugins import plugin_names
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import LowerError, SimplifyError

INPUTS = np.random.default_rng(0).standard_normal((8, 1, 28, 28), dtype=np.float32)


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return CifarResNet(1, 1, 10).eval()


@pytest.fixture(scope="module")
def graph(module: torch.nn.Module) -> onnx.ModelProto:
    return graph_in_opset(module, 20)


def graph_in_opset(module: torch.nn.Module, opset: int) -> onnx.ModelProto:
    return simplify(
        onnx_from_program(program_from_module(module, (1, 28, 28)), opset=opset, batch=BatchRange(1, 8, 32)), INPUTS
    )


def logits(model: onnx.ModelProto, inputs: NDArray[Any] = INPUTS) -> NDArray[Any]:
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        return runtime.run({runtime.inputs[0].name: inputs})[runtime.outputs[0].name]


@pytest.mark.parametrize("name", plugin_names(precisions.__file__))
def test_every_precision_keeps_names_and_interface_and_leaves_its_argument_alone(
    module: torch.nn.Module, name: str, tmp_path: Path
) -> None:
    from exporter.lowering.registry import load_precision

    graph = graph_in_opset(module, ExportPlan("resnet20", Path("unused"), precision=name).opset)
    before = graph.SerializeToString(deterministic=True)
    precision = load_precision(name)
    lowered = precision.lower(graph, dict.fromkeys(precision.observed_tensors(graph), 4.0))
    assert graph.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(lowered, full_check=True)
    for values, original in ((lowered.graph.input, graph.graph.input), (lowered.graph.output, graph.graph.output)):
        assert [(value.name, value.type) for value in values] == [(value.name, value.type) for value in original]
    assert {node.name for node in graph.graph.node} <= {node.name for node in lowered.graph.node}
    assert precision.BUDGET.own_error > 0
    backends = precision.runs_on(lowered)
    assert set(backends) <= set(backend_names())
    simulation = precision.simulation(lowered)
    assert backends or simulation is not None  # or there would be nothing to prove it with
    onnx.save(lowered, tmp_path / "model.onnx")
    for backend in backends:
        with open_runtime(tmp_path / "model.onnx", backend) as runtime:
            assert np.isfinite(runtime.run({"input": INPUTS})["logits"]).all()


def test_fp16_types_every_tensor_between_one_cast_at_each_end(graph: onnx.ModelProto) -> None:
    lowered = fp16.lower(graph, {})
    assert {tensor.data_type for tensor in lowered.graph.initializer} == {TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in lowered.graph.value_info} == {TensorProto.FLOAT16}
    casts = [node.name for node in lowered.graph.node if node.op_type == "Cast"]
    assert casts == ["input.cast", "logits.cast"]
    assert (lowered.graph.node[0].name, lowered.graph.node[-1].name) == ("input.cast", "logits.cast")


def test_a_weight_beyond_fp16_is_an_error_that_names_it(graph: onnx.ModelProto) -> None:
    heavy = onnx.ModelProto()
    heavy.CopyFrom(graph)
    weight = next(tensor for tensor in heavy.graph.initializer if tensor.name == "layer1.0.conv1.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = 7e4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(
        LowerError,
        match=r"'layer1\.0\.conv1\.weight' holds 7e\+04, beyond the range of float16; export in bf16 or fp32",
    ):
        fp16.lower(heavy, {})


def test_an_activation_beyond_fp16_is_invisible_to_a_plain_cpu_run_but_named_by_the_simulation(
    graph: onnx.ModelProto,
) -> None:
    heavy = onnx.ModelProto()
    heavy.CopyFrom(graph)
    for tensor in heavy.graph.initializer:  # a stem whose outputs just fit, and whose sums do not
        if tensor.name in ("conv1.weight", "conv1.bias", "fc.weight"):
            factor = np.float32(1e-4 if tensor.name == "fc.weight" else 3e4)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))
    lowered = fp16.lower(heavy, {})
    assert np.isfinite(logits(lowered)).all()  # onnxruntime computes FP16 graphs in FP32 on this CPU
    simulation = fp16.simulation(lowered)
    assert not np.isfinite(logits(simulation)).all()
    with pytest.raises(
        LowerError,
        match=r"'layer1\.0\.add\.out' are beyond the precision's range on real images; export in bf16 or fp32",
    ):
        _name_overflow(simulation, INPUTS)


def test_the_simulation_rounds_as_pytorch_does_in_half_precision(
    module: torch.nn.Module, graph: onnx.ModelProto
) -> None:
    exact = logits(graph)
    lowered = fp16.lower(graph, {})
    # From the folded graph's weights, as PyTorch's own half() would round the batch norms apart from the convolutions.
    with torch.inference_mode():
        half = folded(module).half()(torch.from_numpy(INPUTS).half()).float().numpy()
    largest = np.abs(exact).max()
    simulated, plain = logits(fp16.simulation(lowered)), logits(lowered)
    assert np.abs(simulated - half).max() / largest < 1e-3
    assert np.abs(simulated - exact).mean() > 1.2 * np.abs(plain - exact).mean()  # what the plain run does not see


@pytest.mark.parametrize(
    ("name", "dtype", "step"), [("fp16", torch.float16, 2**-10), ("bf16", torch.bfloat16, 2**-7)], ids=["fp16", "bf16"]
)
def test_the_simulation_of_a_trained_resnet20_is_pytorchs_own_narrow_module(
    name: str, dtype: torch.dtype, step: float
) -> None:
    """But for the order of sums, which moves a value that lies between two to the other one now and then."""
    from exporter.lowering.registry import load_precision

    precision = load_precision(name)
    plan = ExportPlan("resnet20", Path("unused"), precision=name)
    loaded = load_model(plan.model_request)
    inputs = inputs_from_source(built_in("test"), loaded.preprocess, 256)
    graph = onnx_from_program(
        program_from_module(loaded.module, loaded.preprocess.shape), opset=plan.opset, batch=plan.batch
    )
    simulation = precision.simulation(precision.lower(simplify(graph, inputs[:2]), {}))
    assert simulation is not None
    simulated = logits(simulation, inputs)
    with torch.inference_mode():
        exact = loaded.module(torch.from_numpy(inputs)).numpy()
        narrow = folded(loaded.module).to(dtype)(torch.from_numpy(inputs).to(dtype)).float().numpy()
    largest = np.abs(exact).max()
    assert np.abs(simulated - narrow).max() <= step * largest
    assert np.abs(simulated - narrow).mean() < 0.25 * np.abs(narrow - exact).mean()
    assert (simulated == narrow).mean() > 0.5


def folded(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its batch norms folded into the convolutions."""
    import copy

    from torch.nn.utils.fusion import fuse_conv_bn_eval

    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            if isinstance(getattr(parent, norm, None), torch.nn.BatchNorm2d):
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
                setattr(parent, norm, torch.nn.Identity())
    return result


def test_inputs_that_an_operator_takes_in_fp32_alone_stay_fp32() -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node("Resize", ["input", "", "scales"], ["logits"], mode="nearest")
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, size, size])
        for name, size in (("input", 4), ("logits", 8))
    ]
    model = helper.make_model(
        helper.make_graph([node], "g", tensors[:1], tensors[1:], [scales]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    lowered = cast_graph(model, TensorProto.FLOAT16)
    assert lowered.graph.initializer[0].data_type == TensorProto.FLOAT
    onnx.checker.check_model(lowered, full_check=True)


def test_constants_and_casts_inside_the_graph_are_retyped() -> None:
    half = helper.make_node(
        "Constant", [], ["half"], name="c", value=numpy_helper.from_array(np.array(0.5, np.float32))
    )
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], name="shape"),
        helper.make_node("Cast", ["shape"], ["sizes"], name="cast", to=TensorProto.FLOAT),
        half,
        helper.make_node("ReduceMax", ["sizes"], ["largest"], name="largest", keepdims=0),
        helper.make_node("Mul", ["half", "largest"], ["factor"], name="factor"),
        helper.make_node("Mul", ["input", "factor"], ["logits"], name="scale"),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "logits")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", tensors[:1], tensors[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    lowered = cast_graph(model, TensorProto.FLOAT16)
    onnx.checker.check_model(lowered, full_check=True)
    np.testing.assert_array_equal(logits(lowered, np.ones((4, 3), np.float32)), np.full((4, 3), 2, np.float32))


def test_simplifying_takes_away_what_does_nothing_and_is_checked_by_running(graph: onnx.ModelProto) -> None:
    padded = onnx.ModelProto()
    padded.CopyFrom(graph)
    padded.graph.node[0].output[0] = "stem"
    padded.graph.node.insert(1, helper.make_node("Identity", ["stem"], ["conv1.out"], name="idle"))
    result = simplify(padded, INPUTS)
    assert "idle" not in {node.name for node in result.graph.node}
    np.testing.assert_array_equal(logits(result), logits(graph))


@pytest.mark.parametrize("shape", [("batch", 4), ("batch", 4, 5), ("batch", 4, 5, 3)])
def test_a_batch_norm_that_nothing_took_in_is_a_scale_and_a_shift_in_double_precision(
    shape: tuple[str | int, ...],
) -> None:
    values = {
        "weight": [1, -2, 0.5, 0],
        "bias": [0, 1, 2, 3],
        "mean": [0, 3000, -1, 5],
        "variance": [1, 9e6, 1e-12, 4],
    }  # 9e6 is beyond FP16
    tensors = {name: np.array(each, np.float32) for name, each in values.items()}
    node = helper.make_node("BatchNormalization", ["input", *tensors], ["logits"], name="bn1", epsilon=1e-5)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    constants = [numpy_helper.from_array(each, name) for name, each in tensors.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    inputs = 100 * np.random.default_rng(0).standard_normal((2, *(int(size) for size in shape[1:]))).astype(np.float32)
    result = simplify(model, inputs)
    assert [(one.op_type, one.name) for one in result.graph.node] == [("Mul", "bn1.scale"), ("Add", "bn1")]
    exact = {name: each.astype(np.float64).reshape(-1, *[1] * (len(shape) - 2)) for name, each in tensors.items()}
    factor = exact["weight"] / np.sqrt(exact["variance"] + np.float64(np.float32(1e-5)))
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    np.testing.assert_array_equal(written["bn1.factor"], factor.astype(np.float32))
    np.testing.assert_array_equal(written["bn1.shift"], (exact["bias"] - exact["mean"] * factor).astype(np.float32))
    np.testing.assert_allclose(logits(result, inputs), logits(model, inputs), rtol=1e-5, atol=1e-4)
    assert np.isfinite(logits(fp16.lower(result, {}), inputs)).all()


def test_a_simplifier_that_changes_the_answer_is_stopped(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            if tensor.name == "fc.bias":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
        return changed, True

    monkeypatch.setattr("onnxsim.simplify", careless)
    with pytest.raises(SimplifyError, match="simplifying changed the logits by"):
        simplify(graph, INPUTS)
