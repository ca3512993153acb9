"""A head that DLA has: the same numbers from an average pool, a 1x1 convolution and a Reshape, or a refusal in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized_files import answers, network, operators, quantized
from residual_graphs import CHANNELS, INPUTS, conv, graph_of, op

from exporter.graph.dla_head import NOT_ON_DLA, with_dla_head
from exporter.lowering.lint.file import lint_file
from exporter.lowering.lint.versions import choose_versions
from exporter.lowering.precisions import fp16
from exporter.lowering.qdq.targets._float import places_left_in_float
from runtimes.errors import PlanError

ROWS = 3
PICTURES = INPUTS[:ROWS]
HEAD = ("AveragePool", "Conv", "Reshape")


def fixed(model: onnx.ModelProto, rows: int = ROWS) -> onnx.ModelProto:
    """In place, for batches of one size."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = rows
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, most: float = 1e-6) -> None:
    expected, found = answers(before, PICTURES), answers(after, PICTURES)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= most * np.abs(expected).max()


def dla_rules(model: onnx.ModelProto) -> list[str]:
    found = lint_file(model, choose_versions("11.4"), dla=True).findings
    return [one.finding.rule for one in found if one.finding.rule.startswith("RE8")]


def test_the_head_computes_the_same_and_is_all_on_dla() -> None:
    model = fixed(network())
    written = with_dla_head(model)
    assert [node.op_type for node in written.graph.node[-3:]] == [*HEAD]
    pool, convolution, _ = written.graph.node[-3:]
    assert helper.get_node_attr_value(pool, "kernel_shape") == [6, 6]
    assert (convolution.name, {tensor.name: list(tensor.dims) for tensor in written.graph.initializer}["Wfc"]) == (
        "fc",
        [3, CHANNELS, 1, 1],
    )
    assert_same(model, written)
    assert "GlobalAveragePool" in operators(model)  # which is as it was
    assert "RE802" in dla_rules(fp16.lower(model, {}))
    assert dla_rules(with_dla_head(fp16.lower(model, {}))) == []


def test_a_lowered_graph_keeps_its_casts_and_its_scales(tmp_path: Any) -> None:
    half = fp16.lower(fixed(network()), {})
    written = with_dla_head(half)
    assert [node.op_type for node in written.graph.node[-4:]] == [*HEAD, "Cast"]
    assert_same(half, written, 2.0**-10)
    pairs = fixed(quantized(tmp_path, model=network()))
    gemm = next(node for node in pairs.graph.node if node.op_type == "Gemm")
    assert gemm.input[1] not in {tensor.name for tensor in pairs.graph.initializer}  # its weight is quantized, too
    gemm.input[2] = "Bfc.float"  # as intake leaves it
    pairs.graph.initializer.append(numpy_helper.from_array(np.array([0.1, 0.2, 0.3], np.float32), "Bfc.float"))
    written = with_dla_head(pairs)
    assert not operators(written) & {*NOT_ON_DLA, "Gemm"}
    assert_same(pairs, written)


def test_int8_leaves_the_head_in_float_as_it_does_a_gemm() -> None:
    written = with_dla_head(fixed(network()))
    places = places_left_in_float(written.graph)
    assert [written.graph.node[place].name for place in places] == ["fc"]


def test_every_other_pool_of_the_whole_map_and_a_head_of_two_layers_are_written_too() -> None:
    model = fixed(
        graph_of(
            conv("stem", "input"),
            op("GlobalAveragePool", "stem.out", output="squeeze.out"),
            conv("excite", "squeeze.out"),
            op("Sigmoid", "excite.out", output="gate.out"),
            op("Mul", "stem.out", "gate.out", output="scaled.out"),
            op("GlobalMaxPool", "scaled.out", output="gap.out"),
            op("Flatten", "gap.out", output="flat.out"),
            helper.make_node("Gemm", ["flat.out", "Winner", "Binner"], ["inner.out"], name="inner", transB=1),
            op("Relu", "inner.out", output="relu.out"),
            helper.make_node("Gemm", ["relu.out", "Wfc", "Bfc"], ["logits"], name="fc", transB=1),
        )
    )
    square = next(tensor for tensor in model.graph.initializer if tensor.name == "Winner")
    square.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(square)[:, :, 1, 1], "Winner"))
    model = fixed(model)
    written = with_dla_head(model)
    assert [node.op_type for node in written.graph.node[-5:]] == ["MaxPool", "Conv", "Relu", "Conv", "Reshape"]
    assert_same(model, written)
    assert with_dla_head(model).SerializeToString() == written.SerializeToString()


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    del model.graph.value_info[:]
    return model


def _large(model: onnx.ModelProto) -> onnx.ModelProto:
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 9
    return fixed(model)


def _scaled(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[-1].attribute.append(helper.make_attribute("alpha", 0.5))
    return model


def _features(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("gap.out", TensorProto.FLOAT, [ROWS, CHANNELS, 1, 1]))
    return model


def _flat_map(model: onnx.ModelProto) -> onnx.ModelProto:
    """A classifier that reads every pixel."""
    *_, pool, flatten, _ = model.graph.node
    flatten.input[0] = pool.input[0]
    wide = np.zeros((3, CHANNELS * 36), np.float32)
    next(one for one in model.graph.initializer if one.name == "Wfc").CopyFrom(numpy_helper.from_array(wide, "Wfc"))
    model.graph.node.remove(pool)
    return fixed(model)


def _mean(model: onnx.ModelProto) -> onnx.ModelProto:
    """A mean over other axes in front."""
    axes = numpy_helper.from_array(np.array([1]), "axes")
    model.graph.initializer.append(axes)
    mean = helper.make_node("ReduceMean", ["last_act.out", "axes"], ["mean.out"], name="mean")
    join = helper.make_node("Mul", ["last_act.out", "mean.out"], ["joined.out"], name="join")
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.input[0] = "joined.out"
    nodes = [*model.graph.node]
    nodes[-3:-3] = [mean, join]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return fixed(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_free, "needs fixed sizes, and those before 'gap' are not known"),
        (_large, "DLA pools 8x8 pixels at most, and 'gap' pools a map of 9x9; take a smaller --image-size"),
        (_scaled, "'fc' is none"),
        (_features, "this network has none"),
        (_flat_map, "'fc' reads something else"),
        (_mean, "'mean' (ReduceMean) is neither"),
    ],
)
def test_what_cannot_be_written_for_dla_is_refused_by_name(
    change: Callable[[onnx.ModelProto], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(PlanError) as refused:
        with_dla_head(change(fixed(network())))
    assert said in str(refused.value)
    assert "leave out --dla-friendly" in str(refused.value)
    assert "\n" not in str(refused.value)
