"""The steps by which a stranger's graph is taken in, one by one: what each changes, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.intake.batch import free_batch
from exporter.graph.intake.fold import fold_paddings, fold_scales
from exporter.graph.intake.head import head_of
from exporter.graph.intake.interface import image_input, layout_of
from exporter.graph.intake.known import use_known_head
from exporter.graph.intake.layout import normalisation_of, take_channels_first
from exporter.graph.intake.plain import convert_opset, make_plain
from exporter.graph.intake.wiring import Wiring, drop_unused
from exporter.graph.naming import make_file_readable
from runtimes.errors import BadInput
from runtimes.parity.compare import LOGITS, PROBABILITIES

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.standard_normal((3, 3, 9, 9)).astype(np.float32)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    shape: Sequence[int | str] = ("n", 3, 9, 9),
    output: str = "y",
    opset: int = 17,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info("x", FLOAT, shape)], [helper.make_tensor_value_info(output, FLOAT, None)]
    graph = helper.make_graph(nodes, "net", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answer(model: onnx.ModelProto, inputs: NDArray[np.float32] = PICTURES) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


NORM = {"a": 1 + 0.1 * floats(8), "b": floats(8), "m": floats(8), "v": 1 + floats(8) ** 2}
CONV = {"w": floats(8, 3, 3, 3)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_what_is_behind_a_convolution_is_folded(bias: bool, group: int) -> None:
    rows = 8 if group == 1 else 6
    constants: dict[str, Any] = {"w": floats(rows, 3 // group, 3, 3), "c": floats(rows)}
    constants |= {"a": 1 + floats(rows) ** 2, "b": floats(rows), "m": floats(rows), "v": 1 + floats(rows) ** 2}
    constants |= {"s": floats(rows, 1, 1), "t": floats(1, rows, 1, 1), "half": np.float32(0.5)}
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["c"] if bias else [])], ["1"], name="conv", pads=[1] * 4, group=group),
        helper.make_node("Add", ["1", "t"], ["2"]),
        helper.make_node("BatchNormalization", ["2", "a", "b", "m", "v"], ["3"], epsilon=0.01),
        helper.make_node("Mul", ["s", "3"], ["4"]),
        helper.make_node("Sub", ["half", "4"], ["5"]),
        helper.make_node("Div", ["5", "half"], ["y"]),
    ]
    model = graph_of(nodes, constants)
    before = answer(model)
    assert fold_scales(model) == (
        "folded into convolutions and matrix products: 1 of 1 batch norm, 4 constants of Mul, Div, Add or Sub"
    )
    assert operators(model) == ["Conv"]
    np.testing.assert_allclose(answer(model), before, atol=1e-5 * np.abs(before).max())


def test_what_is_in_front_of_a_convolution_is_folded_only_where_there_is_no_border() -> None:
    """A shift would be missing in the padding."""
    constants = {**CONV, **NORM, "k": floats(4, 8, 1, 1), "f": np.float32(2)}
    for pads, left, shift in ((0, 1, True), (1, 0, False), (1, 1, True)):
        middle = ["Relu", "BatchNormalization"] if shift else ["Relu", "Mul"]
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["1"], name="first"),
            helper.make_node("Relu", ["1"], ["2"]),
            helper.make_node(middle[1], ["2", *(["a", "b", "m", "v"] if shift else ["f"])], ["3"]),
            helper.make_node("Conv", ["3", "k"], ["y"], name="second", pads=[pads] * 4),
        ]
        model = graph_of(nodes, constants)
        before = answer(model)
        fold_scales(model)
        is_left = middle[1] in operators(model)
        assert is_left == (shift and pads > 0), (pads, left)
        np.testing.assert_allclose(answer(model), before, atol=1e-5 * np.abs(before).max())


def test_a_scale_that_something_else_reads_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["1"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["1", "a", "b", "m", "v"], ["2"]),
        helper.make_node("Add", ["1", "2"], ["y"]),
    ]
    model = graph_of(nodes, {**CONV, **NORM})
    assert fold_scales(model) == ""
    assert operators(model) == ["Conv", "BatchNormalization", "Add"]


def test_what_is_done_to_the_pixels_first_stays() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["1"]),
        helper.make_node("Conv", ["1", "w"], ["y"]),
    ]
    model = graph_of(nodes, {**CONV, "s": np.float32(1 / 255)})
    assert fold_scales(model) == ""


@pytest.mark.parametrize(
    ("before", "operator", "value", "folds"),
    [
        ("Relu", "Conv", 0.0, True),
        ("Relu", "Conv", 1.0, False),
        ("Relu", "MaxPool", 0.0, True),
        ("Tanh", "MaxPool", 0.0, False),
        ("Tanh", "MaxPool", float(np.finfo(np.float32).min), True),
        ("Relu", "AveragePool", 0.0, False),
    ],
)
def test_a_pad_is_folded_where_it_computes_the_same(before: str, operator: str, value: float, folds: bool) -> None:
    last = ["2", *(["w"] if operator == "Conv" else [])]
    nodes = [
        helper.make_node(before, ["x"], ["1"]),
        helper.make_node("Pad", ["1", "pads", "value"], ["2"]),
        helper.make_node(operator, last, ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    model = graph_of(nodes, {**CONV, "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1]), "value": np.float32(value)})
    expected = answer(model)
    assert fold_paddings(model) == ("1 Pad folded into the convolution or pool behind" if folds else "")
    assert ("Pad" in operators(model)) != folds
    np.testing.assert_allclose(answer(model), expected, rtol=1e-6)


def test_a_pad_of_channels_stays() -> None:
    nodes = [helper.make_node("Pad", ["x", "pads"], ["1"]), helper.make_node("Conv", ["1", "w"], ["y"])]
    model = graph_of(nodes, {"w": floats(4, 5, 3, 3), "pads": np.array([0, 0, 0, 0, 0, 2, 0, 0])})
    assert fold_paddings(model) == ""


def flattening(target: Sequence[int]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["1"]),
        helper.make_node("Reshape", ["1", "shape"], ["2"]),
        helper.make_node("Gemm", ["2", "k"], ["y"]),
    ]
    return graph_of(nodes, {"shape": np.array(target), "k": floats(3, 5)}, (1, 3, 9, 9))


@pytest.mark.parametrize(("target", "works"), [((1, 3), True), ((1, -1), True), ((-1, 3), True), ((3, 1), False)])
def test_a_fixed_batch_is_made_free(target: tuple[int, int], works: bool) -> None:
    model = (
        flattening(target)
        if works
        else graph_of([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"shape": np.array([3, 81])}, (1, 3, 9, 9))
    )
    one = answer(model, PICTURES[:1])
    assert free_batch(model, "x").startswith("batch of 1 made free")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    if works:
        np.testing.assert_allclose(answer(model)[:1], one, rtol=1e-6)
    else:  # which the runs at three sizes show
        with pytest.raises(Exception, match="Reshape"):
            answer(model)


def test_a_squeeze_of_everything_leaves_a_free_batch() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["1"]),
        helper.make_node("Unsqueeze", ["1", "axes"], ["2"]),
        helper.make_node("Squeeze", ["2"], ["y"]),
    ]
    model = graph_of(nodes, {"axes": np.array([4])}, (1, 3, 9, 9))
    assert free_batch(model, "x") == "batch of 1 made free (1 Squeeze rewritten)"
    assert answer(model).shape == (3, 3)


def test_an_input_with_the_channels_last_takes_them_first() -> None:
    """What stands before the Transpose works on every pixel alike, so that its constants are reordered."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["1"]),
        helper.make_node("Pad", ["1", "pads"], ["2"]),
        helper.make_node("Transpose", ["2"], ["3"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["3", "w"], ["y"]),
    ]
    constants = {**CONV, "mean": floats(3), "pads": np.array([0, 1, 2, 0, 0, 3, 0, 0])}
    model = graph_of(nodes, constants, ("n", 9, 9, 3))
    before = answer(model, PICTURES.transpose(0, 2, 3, 1))
    assert image_input(model, "file").layout == "nhwc"
    assert take_channels_first(model, "x").endswith("its Transpose removed")
    drop_unused(model.graph)
    assert operators(model) == ["Sub", "Pad", "Conv"]
    np.testing.assert_allclose(answer(model), before, rtol=1e-5, atol=1e-5)
    assert layout_of(Wiring(model.graph), "x") == "nchw"


@pytest.mark.parametrize(("target", "layout"), [((-1, 1, 9, 8), "nhwc"), ((-1, 1, 8, 9), "nchw")])
def test_a_reshape_of_one_channel_is_the_transpose_that_it_stands_for(target: Sequence[int], layout: str) -> None:
    """As tf2onnx writes it for networks of digits."""
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["1"]), helper.make_node("Conv", ["1", "w"], ["y"])]
    constants = {"w": floats(4, 1, 3, 3), "sizes": np.array(target)}
    model = graph_of(nodes, constants, ("n", 9, 8, 1) if layout == "nhwc" else ("n", 3, 9, 1))
    pictures = floats(2, 9, 8, 1)
    if layout == "nchw":
        assert (image_input(model, "it").layout, operators(model)[0]) == ("nchw", "Reshape")
        return
    before = answer(model, pictures)
    assert image_input(model, "it")[1:4] == ("nhwc", None, 1)
    take_channels_first(model, "x")
    np.testing.assert_allclose(answer(model, pictures.transpose(0, 3, 1, 2)), before, rtol=1e-6)


def test_a_dropout_whose_mask_is_read_stays() -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["1", "mask"]),
        helper.make_node("Cast", ["mask"], ["2"], to=FLOAT),
        helper.make_node("Mul", ["1", "2"], ["y"]),
    ]
    model = graph_of(nodes, {})
    assert make_plain(model) == ""
    assert operators(model) == ["Dropout", "Cast", "Mul"]


def test_a_transpose_is_put_in_front_where_what_follows_has_constants_of_its_own_order() -> None:
    nodes = [
        helper.make_node("Add", ["x", "picture"], ["1"]),
        helper.make_node("Clip", ["1", "low", "high"], ["2"]),
        helper.make_node("Pad", ["2", "pads", "", "axes"], ["3"]),
        helper.make_node("Transpose", ["3"], ["4"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["4", "w"], ["y"]),
    ]
    constants = {
        **CONV, "picture": floats(9, 9, 3), "low": np.float32(-1), "high": np.float32(1),
        "pads": np.array([1, 1]), "axes": np.array([2]),
    }  # fmt: skip
    model = graph_of(nodes, constants, ("n", 9, 9, 3), opset=18)
    before = answer(model, PICTURES.transpose(0, 2, 3, 1))
    assert take_channels_first(model, "x").endswith("by a Transpose in front")
    np.testing.assert_allclose(answer(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "mean", "std", "scale"),
    [
        ([("Div", 255.0), ("Sub", (0.5, 0.4, 0.3)), ("Div", (0.2, 0.25, 0.5))], (127.5, 102.0, 76.5), (51.0, 63.75, 127.5), 255),
        ([("Sub", (0.5, 0.4, 0.3)), ("Div", (0.2, 0.25, 0.5))], (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), 1),
        ([("Sub", (123.0, 117.0, 104.0))], (123.0, 117.0, 104.0), (1.0, 1.0, 1.0), 255),
        ([("Mul", 1 / 127.5), ("Add", -1.0)], (127.5,), (127.5,), 255),
    ],
)  # fmt: skip
def test_a_files_own_normalisation_is_recognised(
    nodes: list[tuple[str, Any]], mean: tuple[float, ...], std: tuple[float, ...], scale: int
) -> None:
    made, constants, tensor = [], dict[str, Any](CONV), "x"
    for place, (operator, value) in enumerate(nodes):
        constants[f"k{place}"] = np.float32(value).reshape(1, -1, 1, 1)
        made.append(helper.make_node(operator, [tensor, f"k{place}"], [f"{place}"]))
        tensor = f"{place}"
    found = normalisation_of(graph_of([*made, helper.make_node("Conv", [tensor, "w"], ["y"])], constants), "x")
    assert found is not None
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.std, std, rtol=1e-5)
    assert (found.scale, found.nodes) == (scale, len(nodes))


def test_a_file_that_begins_with_a_convolution_normalises_nothing() -> None:
    assert normalisation_of(graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], dict(CONV)), "x") is None


@pytest.mark.parametrize(
    ("factor", "shift"),
    [(1.0, 0.0), (1.0, 1e-5), (0.458, -0.03), (0.5, 0.0), (127.5, 4.5)],
    ids=["idle", "almost idle", "of normalised pixels", "of no known pixels", "back from -1..1"],
)
def test_what_no_pixels_need_is_no_normalisation(factor: float, shift: float) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["1"]),
        helper.make_node("Add", ["1", "s"], ["2"]),
        helper.make_node("Conv", ["2", "w"], ["y"]),
    ]
    assert normalisation_of(graph_of(nodes, {**CONV, "f": np.float32(factor), "s": np.float32(shift)}), "x") is None


@pytest.mark.parametrize("axes", [None, (2, 3)])
def test_heads_are_written_as_ours_are(axes: tuple[int, ...] | None) -> None:
    transposed = [] if axes else [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1])]
    nodes = [
        *transposed,
        helper.make_node("ReduceMean", ["x" if axes else "t", "axes"], ["1"], keepdims=0),
        helper.make_node("MatMul", ["1", "k"], ["2"]),
        helper.make_node("Add", ["2", "bias"], ["y"]),
    ]
    model = graph_of(nodes, {"axes": np.array(axes or (1, 2)), "k": floats(3, 5), "bias": floats(5)}, opset=20)
    before = answer(model)
    use_known_head(model)
    assert operators(model) == ["GlobalAveragePool", "Flatten", "Gemm"]
    np.testing.assert_allclose(answer(model), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "keep", "outputs", "classes"),
    [
        ("", False, {LOGITS: "2"}, 5),
        ("Softmax", False, {LOGITS: "2"}, 5),
        ("Softmax", True, {PROBABILITIES: "y"}, 5),
        ("Sigmoid", False, {PROBABILITIES: "y"}, 5),
        ("LpNormalization", False, {"y": "y"}, 0),
    ],
)
def test_outputs_with_classes_are_told_from_features(
    last: str, keep: bool, outputs: dict[str, str], classes: int
) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["0"]),
        helper.make_node("Flatten", ["0"], ["1"]),
        helper.make_node("Gemm", ["1", "k"], ["2"]),
        *([helper.make_node(last, ["2"], ["y"])] if last else []),
    ]
    model = graph_of(nodes, {"k": floats(3, 5)}, output="y" if last else "2")
    head = head_of(model.graph, {"y" if last else "2": answer(model, PICTURES[:1])}, keep_softmax=keep)
    assert (head.outputs, head.classes) == (outputs, classes)
    assert head.softmax == ("Softmax" if last == "Softmax" and not keep else "")


def test_a_softmax_that_is_not_last_stays_and_is_said_to() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["0"]),
        helper.make_node("Conv", ["0", "k"], ["1"]),
        helper.make_node("Softmax", ["1"], ["2"], axis=1),
        helper.make_node("Mul", ["2", "percent"], ["y"]),
    ]
    model = graph_of(nodes, {"k": floats(5, 3, 1, 1), "percent": np.float32(100)})
    head = head_of(model.graph, {"y": answer(model, PICTURES[:1])}, keep_softmax=False)
    assert (head.outputs, head.softmax) == ({PROBABILITIES: "y"}, "")


@pytest.mark.parametrize(
    ("last", "name", "outputs", "classes"),
    [
        ("Softmax", "y", {LOGITS: "1"}, 3),
        ("Relu", "logits", {LOGITS: "logits"}, 3),
        ("Relu", "y", {"y": "y"}, 0),
        ("Relu", "input", {"input_1": "input"}, 0),
    ],
)
def test_pooled_values_are_classes_where_a_softmax_or_their_name_says_so(
    last: str, name: str, outputs: dict[str, str], classes: int
) -> None:
    """As SqueezeNet's are: its last convolution stands before the pool."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["1"]), helper.make_node(last, ["1"], [name])]
    model = graph_of(nodes, {}, output=name)
    head = head_of(model.graph, {name: answer(model, PICTURES[:1])}, keep_softmax=False)
    assert (head.outputs, head.classes) == (outputs, classes)


def test_names_of_scores_are_for_scores_alone() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["logits"]),
        helper.make_node("Flatten", ["x"], ["1"]),
        helper.make_node("Gemm", ["1", "k"], ["y"]),
        helper.make_node("Gemm", ["1", "one"], ["probabilities"]),
    ]
    graph = graph_of(nodes, {"k": floats(243, 5), "one": floats(243, 1)}).graph
    answers = {"logits": PICTURES[:1], "y": floats(1, 5), "probabilities": floats(1, 1)}
    outputs = {"logits_1": "logits", LOGITS: "y", "probabilities_1": "probabilities"}
    assert head_of(graph, answers, keep_softmax=False).outputs == outputs


def test_constants_are_found_wherever_they_are() -> None:
    nodes = [
        helper.make_node("Constant", [], ["low"], value_float=0.0),
        helper.make_node("Constant", [], ["high"], value=numpy_helper.from_array(np.array(6, np.float32))),
        helper.make_node("Identity", ["x"], ["1"]),
        helper.make_node("Clip", ["1", "low", "high"], ["2"]),
        helper.make_node("Dropout", ["2"], ["3"]),
        helper.make_node("Conv", ["3", "w"], ["y"]),
    ]
    model = graph_of(nodes, dict(CONV))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, CONV["w"].shape))
    before = answer(model)
    said = make_plain(model)
    assert said == (
        "1 weight no longer listed as inputs, 2 Constant nodes turned into initializers, 1 Identity node removed, "
        "1 Dropout node removed"
    )
    assert operators(model) == ["Clip", "Conv"]
    assert [value.name for value in model.graph.input] == ["x"]
    np.testing.assert_array_equal(answer(model), before)


def test_an_operator_that_cannot_be_converted_is_named() -> None:
    model = graph_of([helper.make_node("Swish", ["x"], ["y"])], {}, opset=24)
    with pytest.raises(BadInput, match=r"file: cannot convert it from opset 24 to 20: .*Swish"):
        convert_opset(model, 20, "file")


def test_names_are_readable_and_never_the_same_twice() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["1"], name="/layer1/layer1.0/conv1/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["1"], ["2"], name="/layer1/layer1.0/relu/Relu"),
        helper.make_node("Relu", ["2"], ["3"], name="/layer1/layer1.0/relu_1/Relu"),
        helper.make_node("Add", ["3", "2"], ["4"], name="/layer1/layer1.0/Add"),
        helper.make_node("Relu", ["4"], ["5"]),
        helper.make_node("Relu", ["5"], ["y"], name="/relu2/Relu"),
    ]
    model = graph_of(nodes, dict(CONV))
    make_file_readable(model)
    assert [node.name for node in model.graph.node] == [
        "layer1.0.conv1", "layer1.0.relu", "layer1.0.relu_1", "layer1.0.add", "relu", "relu2",
    ]  # fmt: skip
    tensorflow = [helper.make_node("Conv", ["x", "w"], ["y"], name="StatefulPartitionedCall/net/conv1_conv/Conv2D")]
    more = helper.make_node("Relu", ["y"], ["z"], name="StatefulPartitionedCall/net/conv1_relu/Relu")
    model = graph_of([*tensorflow, more], dict(CONV), output="z")
    make_file_readable(model)
    assert [node.name for node in model.graph.node] == ["conv1_conv", "conv1_relu"]
    assert [tensor.name for tensor in model.graph.initializer] == ["conv1_conv.weight"]
