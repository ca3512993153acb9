"""Where Q/DQ pairs go in real graphs, how they are written, and that no weight and no range is spoilt on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from exporter import ExportPlan
from exporter.graph import blocks
from exporter.graph.blocks import residuals
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.precisions import int8
from exporter.lowering.qdq.fit import SMALLEST_WEIGHT_SCALE
from exporter.lowering.qdq.insert import CLIPPED_SHARES, WeightForm, channel_scales, insert_pairs
from exporter.lowering.qdq.targets import Edge, Placement
from exporter.lowering.qdq.targets.tensorrt import place_pairs
from exporter.models.loading import load_model
from runtimes import BatchRange
from runtimes.errors import CalibrationError, LowerError

BATCH = BatchRange(1, 2, 4)
SIZES = {"resnet18": (64, 64), "resnet50": (64, 64), "resnext50_32x4d": (64, 64)}
PAIRS = {"resnet20": (21, 42), "resnet18": (21, 41), "resnet50": (54, 107), "resnext50_32x4d": (54, 107)}
"""Of each model: how many QuantizeLinear and DequantizeLinear.

NVIDIA ModelOpt writes 41 and 107 pairs for resnet18 and resnet50, with weights.
"""


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], onnx.ModelProto]:
    """The simplified FP32 graph of a model with random weights, traced once."""
    graphs: dict[str, onnx.ModelProto] = {}

    def graph(name: str) -> onnx.ModelProto:
        if name not in graphs:
            loaded = load_model(
                ExportPlan(
                    name, tmp_path_factory.mktemp("unused"), weights="random", image_size=SIZES.get(name), batch=BATCH
                ).model_request
            )
            traced = onnx_from_program(
                program_from_module(loaded.module, loaded.preprocess.shape), opset=20, batch=BATCH
            )
            graphs[name] = simplify(traced, np.zeros((1, *loaded.preprocess.shape), np.float32))
        return graphs[name]

    return graph


@pytest.fixture(params=PAIRS)
def graph(request: pytest.FixtureRequest, graph_of: Callable[[str], onnx.ModelProto]) -> onnx.ModelProto:
    return graph_of(request.param)


@pytest.fixture
def small(graph_of: Callable[[str], onnx.ModelProto]) -> onnx.ModelProto:
    return graph_of("resnet20")


def with_pairs(model: onnx.ModelProto, threshold: float = 3.0) -> onnx.ModelProto:
    placement = place_pairs(model)
    return insert_pairs(model, placement, dict.fromkeys(placement.observed, threshold))


def lowered(model: onnx.ModelProto, threshold: float = 3.0) -> onnx.ModelProto:
    return int8.lower(model, dict.fromkeys(int8.observed_tensors(model), threshold))


def nodes_of(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_counts_are_those_of_nvidias_own_tool(graph_of: Callable[[str], onnx.ModelProto]) -> None:
    for name, counts in PAIRS.items():
        written = Counter(node.op_type for node in lowered(graph_of(name)).graph.node)
        assert (written["QuantizeLinear"], written["DequantizeLinear"]) == counts, name


def test_every_convolution_reads_an_int8_input_and_an_int8_weight_with_a_scale_for_each_channel(
    graph: onnx.ModelProto,
) -> None:
    model = with_pairs(graph)
    made, values = producers(model), constants(model)
    convolutions = nodes_of(model, "Conv")
    assert len(convolutions) == len(nodes_of(graph, "Conv"))
    for node in convolutions:
        read, weight = made[node.input[0]], made[node.input[1]]
        assert read.op_type == weight.op_type == "DequantizeLinear"
        assert made[read.input[0]].op_type == "QuantizeLinear"
        assert list(made[read.input[0]].input[1:]) == list(read.input[1:])
        stored, scales, zeros = (values[name] for name in weight.input)
        assert {stored.dtype.name, zeros.dtype.name} == {"int8"}
        assert scales.shape == zeros.shape == (len(stored),)
        assert stored.min() >= -127
        assert not zeros.any()
        assert [(attribute.name, attribute.i) for attribute in weight.attribute] == [("axis", 0)]
        assert node.input[2] in values  # the bias stays a float constant
        assert values[node.input[2]].dtype == np.float32


def test_all_pairs_are_symmetric_and_activations_have_one_scale(graph: onnx.ModelProto) -> None:
    model = with_pairs(graph)
    values = constants(model)
    for node in nodes_of(model, "QuantizeLinear", "DequantizeLinear"):
        zeros, scales = values[node.input[2]], values[node.input[1]]
        assert zeros.dtype == np.int8
        assert not zeros.any()
        assert (scales > 0).all()
        if node.op_type == "QuantizeLinear":
            assert zeros.shape == scales.shape == ()


def test_nothing_stands_between_a_convolution_and_what_it_is_fused_with(graph: onnx.ModelProto) -> None:
    model = with_pairs(graph)
    after: dict[str, list[str]] = {node.name: [] for node in model.graph.node}
    made = producers(model)
    for node in model.graph.node:
        for name in node.input:
            if name in made:
                after[made[name].name].append(node.op_type)
    shortcuts = {
        made[made[made[node.input[place]].input[0]].input[0]].name
        for node in nodes_of(model, "Add")
        for place in range(2)
        if made[node.input[place]].op_type == "DequantizeLinear"
    }
    for node in nodes_of(model, "Conv"):
        expected = ["QuantizeLinear"] if node.name in shortcuts else None
        assert after[node.name] == expected or after[node.name] in (["Relu"], ["Add"]), node.name
    for node in nodes_of(model, "Add"):
        assert after[node.name] == ["Relu"]


def test_of_every_residual_sum_the_shortcut_alone_is_quantized(graph: onnx.ModelProto) -> None:
    model = with_pairs(graph)
    made, identities = producers(model), 0
    sums = nodes_of(model, "Add")
    assert sums
    for node in sums:
        block = node.name.removesuffix(".add")
        first = next(other for other in model.graph.node if other.name == f"{block}.conv1")
        quantized_inputs = [name for name in node.input if made[name].op_type == "DequantizeLinear"]
        assert len(quantized_inputs) == 1
        main = made[next(name for name in node.input if name not in quantized_inputs)]
        assert main.op_type == "Conv"
        assert main.name in (f"{block}.conv2", f"{block}.conv3")
        source = made[made[quantized_inputs[0]].input[0]].input[0]
        if f"{block}.downsample.0" in {other.name for other in model.graph.node}:
            assert made[source].name == f"{block}.downsample.0"
        else:
            identities += 1
            assert quantized_inputs[0] == first.input[0]  # the block input's own pair, not another one of equal range
    assert identities == len(sums) - len([node for node in model.graph.node if node.name.endswith("downsample.0")]) > 0


def test_the_max_pool_runs_quantized_and_what_leaves_it_has_the_same_range(
    graph_of: Callable[[str], onnx.ModelProto],
) -> None:
    for name in ("resnet18", "resnet50"):
        graph = graph_of(name)
        model = with_pairs(graph)
        made, values = producers(model), constants(model)
        (pool,) = nodes_of(model, "MaxPool")
        pair = made[pool.input[0]]
        assert pair.op_type == "DequantizeLinear"
        (after,) = [node for node in nodes_of(model, "QuantizeLinear") if node.input[0] == pool.output[0]]
        assert values[after.input[1]] == values[pair.input[1]]
        placement = place_pairs(graph)
        assert placement.ranges[pool.output[0]] == pool.input[0].removesuffix(".dequantized")
        assert pool.output[0] not in placement.observed


def test_global_pooling_and_the_classifier_stay_float(graph: onnx.ModelProto) -> None:
    model = with_pairs(graph)
    made, values = producers(model), constants(model)
    rest = nodes_of(model, "GlobalAveragePool", "Flatten", "Gemm")
    assert [node.op_type for node in rest] == ["GlobalAveragePool", "Flatten", "Gemm"]
    for node in rest:
        assert all(made[name].op_type != "DequantizeLinear" for name in node.input if name in made)
    assert values["fc.weight"].dtype == np.float32


def test_no_tensor_has_two_pairs_and_no_pair_is_unused(graph: onnx.ModelProto) -> None:
    model = with_pairs(graph)
    sources = [node.input[0] for node in nodes_of(model, "QuantizeLinear")]
    assert len(set(sources)) == len(sources)
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert {name for node in model.graph.node for name in node.output} <= read
    assert set(constants(model)) <= read
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_lowering_leaves_int8_weights_and_fp16_everything_else_between_two_casts(graph: onnx.ModelProto) -> None:
    model = lowered(graph)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    weights = {node.input[0] for node in nodes_of(model, "DequantizeLinear")} & {
        tensor.name for tensor in model.graph.initializer
    }
    assert len(weights) == len(nodes_of(model, "Conv"))
    for tensor in model.graph.initializer:
        integer = tensor.name in weights or tensor.name.endswith("zero_point")
        assert tensor.data_type == (TensorProto.INT8 if integer else TensorProto.FLOAT16), tensor.name
    integers = {node.output[0] for node in nodes_of(model, "QuantizeLinear")}
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    for value in inferred.graph.value_info:
        if value.name not in ends:
            expected = TensorProto.INT8 if value.name in integers else TensorProto.FLOAT16
            assert value.type.tensor_type.elem_type == expected, value.name
    assert [(model.graph.node[place].op_type, model.graph.node[place].name) for place in (0, -1)] == [
        ("Cast", "input.cast"),
        ("Cast", "logits.cast"),
    ]
    assert len(nodes_of(model, "Cast")) == 2


def test_the_file_is_about_a_quarter_of_fp32s(graph_of: Callable[[str], onnx.ModelProto]) -> None:
    for name, most in (
        ("resnet18", 0.27),
        ("resnet50", 0.30),
        ("resnext50_32x4d", 0.30),
    ):  # the classifier's FP16 weights are the rest
        graph = graph_of(name)
        assert 0.25 < lowered(graph).ByteSize() / graph.ByteSize() < most, name


def test_the_same_graph_and_ranges_give_the_same_bytes_and_leave_the_graph_alone(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    one = lowered(graph).SerializeToString()
    again = onnx.ModelProto.FromString(before)
    thresholds = {name: 3.0 for name in reversed(int8.observed_tensors(again))}
    assert int8.lower(again, thresholds).SerializeToString() == one
    assert graph.SerializeToString(deterministic=True) == before


def test_weights_come_back_within_half_a_scale_but_for_the_largest_that_are_clipped(graph: onnx.ModelProto) -> None:
    model = lowered(graph)
    original, values = constants(graph), constants(model)
    for node in nodes_of(graph, "Conv"):
        name = node.input[1]
        weight = original[name].astype(np.float64)
        scales = values[f"{name}.scale"].astype(np.float64).reshape(-1, 1, 1, 1)
        stored = values[f"{name}.quantized"].astype(np.float64)
        clipped = weight.clip(-127 * scales, 127 * scales)
        assert (np.abs(stored * scales - clipped) <= scales / 2 * (1 + 1e-6)).all(), name
        assert (clipped != weight).mean() < 0.01, name
        largest = np.abs(weight).reshape(len(weight), -1).max(1)
        wide = largest > 127 * SMALLEST_WEIGHT_SCALE
        digits = np.where(largest > 127 * np.finfo(np.float16).smallest_normal, 1.1e-3, 2.0**-5)
        share = 127 * scales.ravel()[wide] / largest[wide]
        assert (np.abs(share[:, None] - CLIPPED_SHARES) <= digits[wide, None]).any(1).all(), name


def in_half(weight: NDArray[Any]) -> WeightForm:
    return WeightForm(127, half=True, least=np.full(len(weight), SMALLEST_WEIGHT_SCALE, np.float32))


@pytest.mark.parametrize("factor", [0.0, 1e-9, 1e-4, 1.0, 1e3, 1e6])
def test_channel_scales_are_positive_finite_fp16_numbers_of_least_squared_error(factor: float) -> None:
    weight = (np.random.default_rng(0).standard_normal((64, 3, 3, 3)) * factor).astype(np.float32)
    weight[5] = 0
    scales = channel_scales(weight, in_half(weight))
    assert scales.dtype == np.float32
    assert (scales == scales.astype(np.float16)).all()
    assert np.isfinite(scales).all()
    assert (scales >= SMALLEST_WEIGHT_SCALE).all()
    assert scales[5] == np.float32(SMALLEST_WEIGHT_SCALE)
    rows = weight.reshape(64, -1).astype(np.float64)

    def error(each: NDArray[Any]) -> NDArray[np.float64]:
        steps = each.astype(np.float64)[:, None]
        return np.asarray(((np.rint(rows / steps).clip(-127, 127) * steps - rows) ** 2).sum(1))

    wanted = np.maximum(np.abs(weight).reshape(64, -1).max(1) / np.float32(127), np.float32(SMALLEST_WEIGHT_SCALE))
    whole = wanted.astype(np.float16)
    whole = np.where(whole.astype(np.float32) < wanted, np.nextafter(whole, np.float16(np.inf)), whole)
    assert (error(scales) <= error(whole) * (1 + 1e-4)).all()


def test_a_row_with_one_large_weight_among_many_is_clipped() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 512, 3, 3)).astype(np.float32)
    weight[0, 0, 0, 0] = 1.2 * np.abs(weight[0]).max()
    weight[1] = np.sign(weight[1])
    scales = channel_scales(weight, in_half(weight))
    assert scales[0] < np.abs(weight[0]).max() / 127 * 0.97
    assert scales[1] == pytest.approx(1 / 127, rel=1e-3)


def replaced(model: onnx.ModelProto, name: str, change: Callable[[NDArray[Any]], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy


def test_a_dead_channel_keeps_a_valid_scale_and_stays_dead(small: onnx.ModelProto) -> None:
    def die(values: NDArray[Any]) -> None:
        values[3] = 0

    values = constants(lowered(replaced(small, "layer1.0.conv1.weight", die)))
    scale = values["layer1.0.conv1.weight.scale"][3]
    assert np.isfinite(scale)
    assert scale > 0
    assert not values["layer1.0.conv1.weight.quantized"][3].any()
    assert values["layer1.0.conv1.weight.quantized"][4].any()


@pytest.mark.parametrize("threshold", [0.0, 1e-42, 1e-9])
def test_a_tensor_that_is_always_zero_keeps_a_valid_scale_and_the_graph_runs(
    small: onnx.ModelProto, threshold: float
) -> None:
    from runtimes.backends.onnxruntime import OnnxRuntime

    observed = int8.observed_tensors(small)
    model = int8.lower(small, {**dict.fromkeys(observed, 3.0), observed[4]: threshold})
    values = constants(model)
    scales = [values[node.input[1]] for node in nodes_of(model, "QuantizeLinear")]
    assert all(np.isfinite(scale) and scale >= np.finfo(np.float16).smallest_normal for scale in scales)
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        logits = runtime.run({"input": np.ones((2, 1, 28, 28), np.float32)})["logits"]
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("threshold", [np.nan, np.inf, -1.0, None])
def test_a_range_that_is_missing_or_no_number_is_refused_with_the_tensors_name(
    small: onnx.ModelProto, threshold: float | None
) -> None:
    observed = int8.observed_tensors(small)
    thresholds = {name: 3.0 for name in observed if threshold is not None or name != observed[2]}
    if threshold is not None:
        thresholds[observed[2]] = threshold
    with pytest.raises(
        CalibrationError, match=rf"'{observed[2]}' has no usable range \({threshold}\); calibrate this model again"
    ):
        int8.lower(small, thresholds)


def test_a_range_or_a_weight_whose_scale_is_beyond_fp16_is_refused_with_its_name(small: onnx.ModelProto) -> None:
    observed = int8.observed_tensors(small)
    with pytest.raises(LowerError, match=rf"'{observed[3]}' .*beyond the range of float16"):
        int8.lower(small, {**dict.fromkeys(observed, 3.0), observed[3]: 1e9})

    def explode(values: NDArray[Any]) -> None:
        values[0, 0, 0, 0] = 1e8

    with pytest.raises(LowerError, match=r"'layer2\.1\.conv2\.weight' .*beyond the range of float16"):
        lowered(replaced(small, "layer2.1.conv2.weight", explode))


def test_scales_are_the_ranges_over_127_as_fp16_holds_them(small: onnx.ModelProto) -> None:
    observed = int8.observed_tensors(small)
    thresholds = {name: 0.5 + place for place, name in enumerate(observed)}
    values = constants(int8.lower(small, thresholds))
    found = {name: values[f"{name}.scale"] for name in place_pairs(small).tensors if f"{name}.scale" in values}
    assert set(found) == set(observed)
    for name, threshold in thresholds.items():
        assert found[name].dtype == np.float16
        assert found[name] == np.float16(threshold / 127)


def test_the_shortcut_is_found_whichever_way_round_a_sum_is_written(small: onnx.ModelProto) -> None:
    swapped = onnx.ModelProto.FromString(small.SerializeToString())
    for node in swapped.graph.node:
        if node.op_type == "Add":
            node.input[:] = list(reversed(node.input))
    straight, turned = place_pairs(small), place_pairs(swapped)
    assert (turned.tensors, turned.ranges, turned.weights) == (straight.tensors, straight.ranges, straight.weights)
    sums = {node.name for node in nodes_of(small, "Add")}
    assert {(name, 1 - place if name in sums else place) for name, place in turned.edges} == set(straight.edges)
    for model in (small, swapped):
        found = [(residual.addition.name, residual.shortcut) for residual in residuals(model.graph)]
        assert [name for name, _ in found] == [node.name for node in nodes_of(model, "Add")]
        assert set(found) <= place_pairs(model).edges


def chain(length: int) -> onnx.GraphProto:
    """Residual blocks in a row: y = x + Conv(Resize(x)); each Resize leaves an input out, by an empty name."""
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    scales = numpy_helper.from_array(np.ones(4, np.float32), "scales")
    ends = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("x0", f"x{length}")]
    nodes = []
    for place in range(length):
        nodes += [
            onnx.helper.make_node("Resize", [f"x{place}", "", "scales"], [f"resized{place}"]),
            onnx.helper.make_node("Conv", [f"resized{place}", "weight"], [f"branch{place}"]),
            onnx.helper.make_node("Add", [f"x{place}", f"branch{place}"], [f"x{place + 1}"]),
        ]
    return onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scales])


def test_branches_part_at_a_tensor_that_they_share_not_at_a_weight_or_an_input_left_out() -> None:
    assert [(residual.fork, residual.shortcut) for residual in residuals(chain(4))] == [
        (f"x{place}", 0) for place in range(4)
    ]


def test_finding_the_blocks_of_a_deep_graph_takes_as_long_as_it_is_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Counting(list[onnx.NodeProto]):
        def __getitem__(self, place: Any) -> Any:
            looked.append(place)
            return super().__getitem__(place)

    original = blocks._residual
    monkeypatch.setattr(
        blocks, "_residual", lambda nodes, addition, makers: original(Counting(nodes), addition, makers)
    )
    assert len(residuals(chain(100))) == 100
    assert len(looked) <= 3 * 100


def test_a_graph_without_blocks_or_pools_is_quantized_at_its_convolutions_alone() -> None:
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 4, 4]) for name in ("input", "logits")
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["input", "weight"], ["a"], name="first"),
        onnx.helper.make_node("Conv", ["a", "weight"], ["logits"], name="second"),  # shares its weight
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=9,
    )
    placement = place_pairs(model)
    assert placement == Placement(
        frozenset({Edge("first", 0), Edge("second", 0)}),
        ("input", "a"),
        {"input": "input", "a": "a"},
        ("first", "second"),
    )
    result = lowered(model, 1.0)
    onnx.checker.check_model(result, full_check=True)
    assert Counter(node.op_type for node in result.graph.node)["DequantizeLinear"] == 3


def test_what_is_written_is_what_onnxruntime_reads(small: onnx.ModelProto, tmp_path: Path) -> None:
    from runtimes.backends.onnxruntime import OnnxRuntime

    path = tmp_path / "model.onnx"
    onnx.save(lowered(small), path)
    with OnnxRuntime.open(path) as runtime:
        assert runtime.run({"input": np.zeros((3, 1, 28, 28), np.float32)})["logits"].shape == (3, 10)
