"""What `inspect --target cpu` says of a graph, held against the kernels that onnxruntime runs it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cpu_graphs import lowered, operators_run, run_file
from onnx import TensorProto, helper, numpy_helper
from residual_graphs import residual

from exporter.lowering.qdq.lint_cpu import lint_for_processors


def with_zero_points_of_128(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "zero_point.0":
            tensor.CopyFrom(numpy_helper.from_array(np.array(128, np.uint8), tensor.name))


def with_an_unquantized_shortcut(model: onnx.ModelProto) -> None:
    addition = next(node for node in model.graph.node if node.name == "sum")
    addition.input[1] = "pool.out"


def with_a_second_reader(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["inner.out"], ["seen"], name="seen"))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))


def test_a_classifiers_bias_inside_of_it_keeps_it_in_float(tmp_path: Path) -> None:
    model = lowered(residual())
    before = lint_for_processors(model)
    assert before is not None
    assert before.findings == ()
    fc = next(node for node in model.graph.node if node.name == "fc")
    fc.input.append("Bfc")
    fc.output[0] = "logits"
    kept = [node for node in model.graph.node if node.name != "fc.add_bias"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias_per_channel")
    bias.name, bias.dims[:] = "Bfc", [3]
    after = lint_for_processors(model)
    assert after is not None
    assert [(one.kind, one.node, one.message) for one in after.findings] == [
        ("runs in float", "fc", "its bias is float, and its output is not quantized; add the bias behind it")
    ]
    assert operators_run(model, tmp_path)[-1] == "Gemm"


def as_it_is(model: onnx.ModelProto) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "integers", "messages"),
    [
        (as_it_is, (3, 1), []),
        (with_zero_points_of_128, (1, 0), ["its ReLU stays, since zero is 128 in UINT8"] * 3),
        (with_an_unquantized_shortcut, (3, 0), ["its second input is not quantized"]),
        (with_a_second_reader, (2, 1), ["not all that reads its output reads it quantized"]),
    ],
    ids=["as it is", "zero points", "shortcut", "second reader"],
)
def test_what_is_said_to_run_on_integers_does(
    change: Callable[[onnx.ModelProto], None], integers: tuple[int, int], messages: list[str], tmp_path: Path
) -> None:
    model = lowered(residual())
    change(model)
    report = lint_for_processors(model)
    assert report is not None
    said = [finding.message for finding in report.findings if finding.kind == "runs in float"]
    assert (report.convolutions.int8, report.shortcuts.int8) == integers
    assert len(said) == len(messages)
    assert all(start in found for start, found in zip(messages, said, strict=True))
    _, kernels = run_file(model, tmp_path)
    assert (kernels.integer_convolutions, kernels.integer_additions) == integers


@pytest.mark.parametrize("name", ["stem", "fc"])
def test_eight_bits_of_the_first_and_the_last_weights_are_found(name: str) -> None:
    model = lowered(residual())
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == f"W{name}.quantized")
    wide = numpy_helper.to_array(weight).copy()
    wide.ravel()[0] = 127
    weight.CopyFrom(numpy_helper.from_array(wide, weight.name))
    report = lint_for_processors(model)
    assert report is not None
    assert [(finding.kind, finding.node) for finding in report.findings] == [("may overflow", name)]


def test_scales_in_half_precision_are_found() -> None:
    half = lowered(residual(), "tensorrt")
    found = lint_for_processors(half)
    assert found is not None
    assert found.convolutions.int8 == 0
    assert any("is FLOAT16; take FLOAT" in finding.message for finding in found.findings)


def test_a_float_graph_has_no_report() -> None:
    assert lint_for_processors(residual()) is None
