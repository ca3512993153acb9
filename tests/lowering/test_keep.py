"""What stays in FP32 where a graph is lowered: guards of a division, and operators without a narrower form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.lowering.precisions import bf16, fp16
from exporter.lowering.precisions._cast import cast_graph
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import LowerError
from runtimes.nvidia.log import log_of

X = np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32)
ZERO = np.zeros((2, 8), np.float32)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    shape: Sequence[Any] = ("batch", 8),
    opset: int = 20,
) -> onnx.ModelProto:
    """A graph from `input` to `logits` of one shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9 if opset < 22 else 10)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def answer(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        result: NDArray[np.float32] = runtime.run({"input": inputs})["logits"]
        return result


def casts(model: onnx.ModelProto) -> list[str]:
    return [one.name for one in model.graph.node if one.op_type == "Cast"]


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)
    }


AXES = np.array([1])
GUARDED: dict[str, NDArray[Any]] = {"axes": AXES, "tiny": np.array(1e-8, np.float32)}
NORM = node("ReduceL2", "input axes", "norm", keepdims=1)
SQUARES = [node("Mul", "input input", "squares"), node("ReduceSum", "squares axes", "sum", keepdims=1)]
GUARDS: dict[str, list[onnx.NodeProto]] = {
    "added": [NORM, node("Add", "norm tiny", "safe"), node("Div", "input safe", "logits")],
    "added first": [
        NORM,
        node("Abs", "norm", "other"),
        node("Add", "tiny norm", "one"),
        node("Add", "one other", "safe"),
        node("Div", "input safe", "logits"),
    ],
    "least": [NORM, node("Clip", "norm tiny", "safe"), node("Div", "input safe", "logits")],
    "maximum": [NORM, node("Max", "norm tiny", "safe"), node("Div", "input safe", "logits")],
    "root": [
        *SQUARES,
        node("Add", "sum tiny", "safe"),
        node("Sqrt", "safe", "root"),
        node("Reciprocal", "root", "factor"),
        node("Mul", "input factor", "logits"),
    ],
    "constant node": [
        NORM,
        node("Constant", "", "c", value_float=1e-8),
        node("Add", "norm c", "safe"),
        node("Div", "input safe", "logits"),
    ],
    "expanded": [
        NORM,
        node("Shape", "input", "sizes", end=1),
        node("ConstantOfShape", "sizes", "c", value=numpy_helper.from_array(np.array([1e-8], np.float32))),
        node("Unsqueeze", "c axes", "column"),
        node("Max", "norm column", "safe"),
        node("Div", "input safe", "logits"),
    ],
    "divisor": [
        node("Abs", "input", "size"),
        node("Div", "size tiny", "large"),
        node("Add", "large tiny", "safe"),
        node("Div", "input safe", "logits"),
    ],
}


@pytest.mark.parametrize("form", GUARDS)
def test_a_guard_of_a_division_outlives_fp16(form: str) -> None:
    model = graph_of(GUARDS[form], GUARDED)
    assert np.isfinite(answer(model, ZERO)).all()
    lowered = fp16.lower(model, {})
    onnx.checker.check_model(lowered, full_check=True)
    for graph in (lowered, fp16.simulation(lowered)):
        np.testing.assert_array_equal(answer(graph, ZERO), answer(model, ZERO))
        np.testing.assert_allclose(answer(graph, X), answer(model, X), rtol=4e-3)


def test_what_is_computed_from_a_guard_is_fp32_up_to_the_division_and_keeps_its_name() -> None:
    lowered = fp16.lower(
        graph_of([*GUARDS["added"][:2], node("Div", "input safe", "even"), node("Relu", "even", "logits")], GUARDED), {}
    )
    found = types(lowered)
    assert [found[name] for name in ("norm", "safe", "even", "logits.float16")] == [
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    ]
    assert casts(lowered) == ["input.cast", "norm.float.cast", "even.float16.cast", "logits.cast"]


def test_bf16_holds_a_guard_that_fp16_does_not() -> None:
    lowered = bf16.lower(graph_of(GUARDS["added"], GUARDED, opset=22), {})
    assert casts(lowered) == ["input.cast", "logits.cast"]
    np.testing.assert_array_equal(answer(bf16.simulation(lowered), ZERO), ZERO)
    smaller = bf16.lower(graph_of(GUARDS["added"], {**GUARDED, "tiny": np.array(1e-42, np.float32)}, opset=22), {})
    assert "norm.float.cast" in casts(smaller)


def scaled(*values: float) -> dict[str, NDArray[Any]]:
    return {"c": np.resize(np.array(values, np.float32), 8)}


def product(*values: float) -> dict[str, NDArray[Any]]:
    return {"c": np.resize(np.array(values, np.float32), (8, 8))}


@pytest.mark.parametrize(
    ("operator", "constants", "is_kept"),
    [
        ("MatMul", product(0.1, 1e-9, 0.2), False),  # a tiny weight among others is lost in the sum too
        ("MatMul", product(1e-7, 0, -1e-8), True),
        ("Add", scaled(0.1, 1e-9), False),
        ("Add", scaled(1e-9, 0), True),
        ("Mul", scaled(0.1, 1e-9), True),
        ("Div", scaled(0.1, 1e-7), True),
        ("PRelu", scaled(0.25, 1e-8), True),
        ("Mul", scaled(0, 2e-6), False),  # 6 of 11 bits are left
        ("Mul", scaled(0, 1.9e-6), True),
    ],
)
def test_a_number_is_lost_with_half_of_its_bits_where_it_is_not_one_of_a_sum(
    operator: str, constants: dict[str, NDArray[Any]], is_kept: bool
) -> None:
    lowered = fp16.lower(graph_of([node(operator, "input c", "logits")], constants), {})
    assert (lowered.graph.initializer[0].data_type == TensorProto.FLOAT) == is_kept
    assert casts(lowered) == ([] if is_kept else ["input.cast", "logits.cast"])


def test_a_bias_may_be_tiny() -> None:
    model = graph_of(
        [node("Gemm", "input c bias", "logits")], {**product(0.1, -0.2), "bias": np.full(8, 1e-9, np.float32)}
    )
    assert casts(fp16.lower(model, {})) == ["input.cast", "logits.cast"]


@pytest.mark.parametrize(("epsilon", "is_kept"), [(1e-5, False), (1e-8, True)])
def test_an_epsilon_in_an_attribute_keeps_its_own_node(epsilon: float, is_kept: bool) -> None:
    nodes = [node("LayerNormalization", "input weight", "even", epsilon=epsilon), node("Relu", "even", "logits")]
    lowered = fp16.lower(graph_of(nodes, {"weight": np.ones(8, np.float32)}), {})
    assert casts(lowered) == (["even.float16.cast", "logits.cast"] if is_kept else ["input.cast", "logits.cast"])


COUNTED = [
    node("Shape", "input", "sizes", start=1),
    node("Squeeze", "sizes", "size"),
    node("Cast", "size", "end", to=TensorProto.FLOAT),
    node("Range", "zero end one", "counts"),
    node("Add", "input counts", "logits"),
]
FORMLESS = {
    "Celu": [node("Relu", "input", "a"), node("Celu", "a", "b"), node("Neg", "b", "logits")],
    "Range": COUNTED,
    "RandomNormalLike": [node("RandomNormalLike", "input", "n", scale=1e-3), node("Add", "input n", "logits")],
    "EyeLike": [node("EyeLike", "input", "n", dtype=TensorProto.FLOAT), node("Add", "input n", "logits")],
}


@pytest.mark.parametrize("precision", [fp16, bf16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("operator", FORMLESS)
def test_an_operator_without_a_narrow_form_computes_in_fp32_between_casts(operator: str, precision: Any) -> None:
    if operator.startswith("Random") and precision is bf16:
        pytest.skip("ONNX Runtime has no random numbers of opset 22")
    constants = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)} if operator == "Range" else {}
    model = graph_of(FORMLESS[operator], constants, shape=(4, 8), opset=22 if precision is bf16 else 20)
    lowered = precision.lower(model, {})
    onnx.checker.check_model(lowered, full_check=True)
    found = types(lowered)
    kept = next(one for one in lowered.graph.node if one.op_type == operator)
    assert {found[name] for name in kept.output} == {TensorProto.FLOAT}
    np.testing.assert_allclose(answer(precision.simulation(lowered), X), answer(model, X), rtol=1e-2, atol=1e-2)


def test_a_count_is_not_rounded_on_its_way_to_a_range() -> None:
    constants = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
    lowered = fp16.lower(graph_of(COUNTED, constants, shape=(1, 2049)), {})
    assert types(lowered)["end"] == TensorProto.FLOAT  # FP16 has no 2049
    assert answer(lowered, np.zeros((1, 2049), np.float32))[0, -1] == 2048


def test_a_constant_that_both_types_read_is_there_in_both() -> None:
    nodes = [node("Add", "input c", "a"), node("Celu", "c", "b"), node("Add", "a b", "logits")]
    lowered = fp16.lower(graph_of(nodes, scaled(0.3, -0.4)), {})
    assert {tensor.name: tensor.data_type for tensor in lowered.graph.initializer} == {
        "c": TensorProto.FLOAT16,
        "c.float": TensorProto.FLOAT,
    }


def test_a_graph_inside_a_node_is_refused_by_the_nodes_name() -> None:
    branch = helper.make_graph(
        [node("Neg", "input", "r")], "b", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", 8])]
    )
    nodes = [
        node("Constant", "", "c", value=numpy_helper.from_array(np.array(True))),
        node("If", "c", "logits", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(
        LowerError, match=r"^'logits' \(If\) holds a graph of its own, which cannot be lowered; export in fp32$"
    ):
        fp16.lower(graph_of(nodes), {})


def test_what_onnx_refuses_after_all_is_one_line() -> None:
    nodes = [node("Cast", "input", "a", to=TensorProto.DOUBLE), node("Add", "a input", "logits")]
    with pytest.raises(LowerError, match=r"^the graph cannot be lowered to float16: .*; export in fp32$"):
        cast_graph(graph_of(nodes), TensorProto.FLOAT16)


def test_tensorrt_takes_casts_around_nodes() -> None:
    nodes = [
        node("Conv", "input w", "a"),
        node("Celu", "a", "b"),
        node("GlobalAveragePool", "b", "c"),
        node("ReduceL2", "c axes", "norm", keepdims=1),
        node("Add", "norm tiny", "safe"),
        node("Div", "c safe", "even"),
        node("Conv", "even w", "logits"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8, size, size])
        for name, size in (("input", 4), ("logits", 1))
    ]
    tensors = {"w": np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1), **GUARDED}
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    )
    lowered = fp16.lower(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), {})
    log = log_of(trt).logger
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(lowered.SerializeToString()), [
        parser.get_error(place).desc() for place in range(parser.num_errors)
    ]
