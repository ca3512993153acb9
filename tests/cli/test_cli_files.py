"""Bad ONNX files for `resnet-export FILE.onnx`: one line with the remedy, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph import onnx_file
from exporter.graph.intake import read as intake_read

FLOAT = TensorProto.FLOAT
TOLD = ("--mean", "0.5", "--std", "0.5", "--no-report")
Change = Callable[[onnx.ModelProto], None]


def network(shape: tuple[int | str | None, ...] = (1, 3, 16, 16)) -> onnx.ModelProto:
    """A convolution, a pool and a classifier of five classes: `x` to `y`."""
    random = np.random.default_rng(0)
    weights = {"w": (8, 3, 3, 3), "fw": (5, 8)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fw"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, [None, 5])],
        [
            numpy_helper.from_array(random.standard_normal(size).astype(np.float32), name)
            for name, size in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_nodes(*nodes: onnx.NodeProto, output: str = "", kind: int = FLOAT) -> Change:
    """Append nodes, and give another output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.extend(nodes)
        if output:
            model.graph.output[0].CopyFrom(helper.make_tensor_value_info(output, kind, [None, None]))

    return change


def with_opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def with_operator(name: str, domain: str = "") -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = name, domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def with_nan(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))


def with_short_weights(model: onnx.ModelProto) -> None:
    values = np.zeros((64, 3, 32, 32), np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    model.graph.initializer[0].raw_data = b"123"


def with_a_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "r"


def with_two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", FLOAT, [1]))


def with_half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def with_normalisation(model: onnx.ModelProto) -> None:
    mean = np.array([123, 117, 104], np.float32).reshape(1, 3, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(mean, "mu"))
    nodes = [helper.make_node("Sub", ["x", "mu"], ["s"], name="sub"), *model.graph.node]
    nodes[1].input[0] = "s"
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def with_sparse_weights(model: onnx.ModelProto) -> None:
    """Of an Add behind the classifier."""
    with_nodes(helper.make_node("Add", ["y", "few"], ["k"], name="add"), output="k")(model)
    values, places = np.ones(2, np.float32), np.array([1, 3], np.int64)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(numpy_helper.from_array(values, "few"), numpy_helper.from_array(places, "at"), [5])
    )


def with_untyped_shape(model: onnx.ModelProto) -> None:
    with_nodes(helper.make_node("Shape", ["y"], ["k"], name="shape"), output="k")(model)
    model.graph.output[0].ClearField("type")


def with_output(*names: str) -> Change:
    """Tensors of the graph as its outputs, in place of its own."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, [None, None]) for name in names)

    return change


BRANCH = helper.make_graph([helper.make_node("Identity", ["y"], ["b"])], "b", [], [onnx.ValueInfoProto(name="b")])
BAD: dict[str, tuple[Change, str]] = {
    "opset newer than we read": (with_opset(99), "expected an opset from 7 to"),
    "opset older than we read": (with_opset(6), "expected an opset from 7 to"),
    "unknown domain": (with_operator("Relu", "my.ops"), "got Relu 'relu' of my.ops, which is not ONNX's own"),
    "unknown operator": (with_operator("Foo"), "No Op registered for Foo"),
    "weights with NaN": (with_nan, "expected finite weights, got NaN or infinity in 'w'"),
    "weights cut short": (with_short_weights, "expected 786432 bytes in 'w', got 3; save it again"),
    "cycle": (with_a_cycle, "expected nodes that follow from one another, got Conv 'conv'"),
    "two inputs": (with_two_inputs, "expected a network with one input, an image, got 'x', 'z'"),
    "half input": (with_half_input, "expected an input of FLOAT, got 'x' of FLOAT16"),
    "class index": (
        with_nodes(helper.make_node("ArgMax", ["y"], ["k"], name="arg"), output="k", kind=TensorProto.INT64),
        "expected scores, got 'k', which ArgMax 'arg' makes",
    ),
    "dropout in training": (
        with_nodes(
            helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("Dropout", ["y", "", "t"], ["k"], name="drop"),
            output="k",
        ),
        "got Dropout 'drop' which answers by chance",
    ),
    "control flow": (
        with_nodes(
            helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["t"], ["k"], name="branch", then_branch=BRANCH, else_branch=BRANCH),
            output="k",
        ),
        "got If 'branch' which chooses or repeats a part of the network",
    ),
    "sparse weights": (with_sparse_weights, "expected dense weights, got sparse ones in 'few'"),
    "no outputs": (with_output(), "expected outputs, each of its own name, got none"),
    "an output twice": (with_output("y", "y"), "expected outputs, each of its own name, got 'y', 'y'"),
    "the input returned": (with_output("y", "x"), "got 'x', which is its input or a constant"),
    "a constant returned": (with_output("y", "w"), "got 'w', which is its input or a constant"),
    "no axis of images": (
        with_nodes(helper.make_node("ReduceSum", ["y"], ["k"], name="sum", keepdims=0), output="k"),
        "expected outputs of (batch, ...) and at least two dimensions, got 'k' of () for one image",
    ),
    "whole numbers of no declared type": (with_untyped_shape, "expected outputs of FLOAT, got 'k' of INT64"),
    "answers that are infinite": (
        with_nodes(
            helper.make_node("Sub", ["y", "y"], ["zero"], name="zero"),
            helper.make_node("Log", ["zero"], ["k"], name="log"),
            output="k",
        ),
        "expected finite answers, got NaN or infinity in 'k'",
    ),
    "sequence": (
        with_nodes(
            helper.make_node("SequenceConstruct", ["y"], ["q"], name="list"),
            helper.make_node("ConcatFromSequence", ["q"], ["k"], name="join", axis=0),
            output="k",
        ),
        "got SequenceConstruct 'list' which is about lists or texts",
    ),
}


@pytest.fixture
def refused(run: Any, tmp_path: Path) -> Any:
    """Runs the command, and checks that it ends with 2 and leaves nothing."""

    def refuse(path: Path, *options: object, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        ran = run(path, "--output", tmp_path / "out", *(options or TOLD), "--quiet")
        assert ran.code == code, ran.err
        assert sorted(tmp_path.rglob("*")) == before
        found: str = ran.error
        return found

    return refuse


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD.keys())
def test_a_graph_that_cannot_be_taken_in(change: Change, says: str, refused: Any, tmp_path: Path) -> None:
    model = network()
    change(model)
    assert says in refused(written(model, tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "is no ONNX model: "),
        (b"", "is no ONNX model: it holds no graph; save it again"),
        (network().SerializeToString()[:400], "is no ONNX model: "),
    ],
    ids=["not ONNX", "empty", "truncated"],
)
def test_a_file_that_is_no_model(content: bytes, says: str, refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert says in refused(path)


def test_a_path_where_no_file_is(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert "expected MODEL as an ONNX file, got a folder at" in refused(tmp_path / "folder.onnx")
    assert "expected MODEL as an ONNX file, got nothing at" in refused(tmp_path / "missing.onnx")


def test_a_file_of_three_gigabytes(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    assert "expected less than 2 GiB, got 3.2 GB" in refused(path)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("gone.data", "got nothing there; put that file beside it"),
        ("../weights.data", "in a file beside it, got '../weights.data'; save it again"),
        ("short.data", "expected at least 864 bytes in"),
        ("link.data", "copy the file itself there"),
    ],
)
def test_weights_in_a_file_that_is_not_as_the_model_says(
    location: str, says: str, refused: Any, tmp_path: Path
) -> None:
    model = network()
    onnx.external_data_helper.convert_model_to_external_data(model, size_threshold=0, location="weights.data")
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "short.data").write_bytes(b"123")
    os.symlink("/etc/passwd", tmp_path / "link.data")
    moved = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    assert says in refused(written(moved, tmp_path))


def test_weights_that_are_larger_than_a_bundle_holds(refused: Any, tmp_path: Path) -> None:
    model = network()
    large = TensorProto(name="w", data_type=FLOAT, dims=[8, 3, 3, 30_000_000], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "large.data"), ("offset", "0"), ("length", str(8 * 9 * 30_000_000 * 4))):
        large.external_data.add(key=key, value=value)
    with (tmp_path / "large.data").open("wb") as file:
        file.truncate(8 * 9 * 30_000_000 * 4)  # sparse
    model.graph.initializer[0].CopyFrom(large)
    assert "expected weights of less than 2 GiB, got 8.6 GB" in refused(written(model, tmp_path))


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_changes_while_it_is_read(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    model = network()
    if beside:
        onnx.external_data_helper.convert_model_to_external_data(model, size_threshold=0, location="weights.data")
    onnx.save(model, tmp_path / "model.onnx")
    changed = tmp_path / ("weights.data" if beside else "model.onnx")
    check = onnx_file.checked_model

    def check_and_write(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
        found = check(model, path)
        changed.write_bytes(changed.read_bytes() + b"\x08\x08")
        return found

    monkeypatch.setattr(intake_read, "checked_model", check_and_write)
    assert "was changed while it was read; wait until it is written, and repeat" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((1, 3, 0, 16), TOLD, "expected sizes from 1 to 65,536, got 'x' of 1x3x0x16"),
        (
            ("n", 3, "h", "w"),
            TOLD,
            "expected --image-size with model.onnx, got none: the file leaves height and width open",
        ),
        (
            (1, 3, 16, 16),
            (*TOLD, "--image-size", "32"),
            "--image-size says 32x32, but model.onnx takes pictures of 16x16",
        ),
        ((1, 3, 16, 16), ("--mean", "0.5"), "expected --mean and --std with model.onnx, got --mean alone"),
        ((1, 3, 16, 16), ("--no-report",), "expected --mean and --std with model.onnx, got neither"),
        ((1, 3, 16), TOLD, "expected an input of four dimensions"),
        ((1, 16, 16, 3), TOLD, "got 'x' of 1x16x16x3; save it with the channels first"),
        ((1, 3, 16, 16), (*TOLD, "--weights", "random"), "--weights is for networks of PyTorch"),
        ((1, 3, 16, 16), (*TOLD, "--features", "pool"), "--features is for networks of PyTorch"),
        ((1, 3, 16, 16), (*TOLD, "--variant", "v1"), "'v1' means nothing for"),
        ((1, 3, 16, 16), (*TOLD, "--num-classes", "7"), "--num-classes says 7, but model.onnx has 5 classes"),
        ((1, 3, 16, 16), ("--mean", "0.5,0.5", "--std", "1"), "expected --mean with 1 or 3 values, got 2"),
        ((1, 3, 16, 16), (*TOLD, "--int8"), "give --data with a folder of some 500 images"),
    ],
)
def test_what_is_told_must_fit_the_file(
    shape: tuple[Any, ...], options: tuple[str, ...], says: str, refused: Any, tmp_path: Path
) -> None:
    assert says in refused(written(network(shape), tmp_path), *options)


def test_a_size_that_the_file_cannot_take(refused: Any, tmp_path: Path) -> None:
    """Its classifier reads a fixed number of values, though height and width are free."""
    model = network((1, 3, None, None))
    model.graph.node[2].CopyFrom(helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[16, 16]))
    said = refused(written(model, tmp_path), *TOLD, "--image-size", "32")
    assert "onnxruntime cannot run it on a picture of 3 channels and 32x32 pixels, nchw: " in said
    assert said.endswith("; give the --image-size that it was made for, or save it again with its sizes")


def test_labels_of_another_count(refused: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n")
    assert "expected 5 labels" in refused(written(network(), tmp_path), *TOLD, "--labels", labels)


def test_a_mean_that_contradicts_the_file(refused: Any, tmp_path: Path) -> None:
    model = network()
    with_normalisation(model)
    said = refused(written(model, tmp_path))
    assert "--mean and --std would normalise pixels that model.onnx normalises itself" in said
    assert "mean 123, 117, 104" in said


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                tensors[place] = names.get(name, name)
    for value in (*model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)


def with_pooled_convolution(model: onnx.ModelProto) -> None:
    """A head of a 1x1 convolution, a Softmax, and a Reshape behind it."""
    model.graph.node[4].CopyFrom(helper.make_node("Conv", ["p", "fw"], ["q"], name="fc"))
    model.graph.initializer[1].dims.extend([1, 1])
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), "sizes"))
    model.graph.node[3].CopyFrom(helper.make_node("Identity", ["p"], ["f"], name="idle"))
    model.graph.node.append(helper.make_node("Softmax", ["q"], ["s"], name="softmax", axis=1))
    model.graph.node.append(helper.make_node("Reshape", ["s", "sizes"], ["y"], name="reshape"))


def with_own_domain(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.domain = "ai.onnx"


ODD: dict[str, Change] = {
    "output without a shape": lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"),
    "output without a type": lambda model: model.graph.output[0].ClearField("type"),
    "graph without a name": lambda model: model.graph.ClearField("name"),
    "nodes of ai.onnx": with_own_domain,
    "our names inside": lambda model: renamed(
        model, {"c": "logits", "r": "logits.inner", "p": "logits.renamed", "f": "input", "w": "input.inner"}
    ),
    "output with the input's name of ours": lambda model: renamed(model, {"y": "input"}),
    "a Reshape behind its Softmax": with_pooled_convolution,
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_a_graph_written_oddly_is_taken_in(change: Change, run: Any, tmp_path: Path) -> None:
    model = network()
    change(model)
    ran = run(written(model, tmp_path), "--output", tmp_path / "out", *TOLD, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["ok"]
    assert ran.json["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}]
    assert ran.json["model"]["classes"] == 5


def test_a_number_of_classes_told_of_features(refused: Any, tmp_path: Path) -> None:
    model = network()
    with_output("f")(model)
    said = refused(written(model, tmp_path), *TOLD, "--num-classes", "5")
    assert "--num-classes says 5, but model.onnx gives features; leave it out" in said


@pytest.mark.parametrize("kind", ["double names", "unsorted", "free size", "fixed batch of two"])
def test_an_odd_file_that_can_be_taken_in(kind: str, run: Any, tmp_path: Path) -> None:
    shape: tuple[Any, ...] = {"free size": ("n", 3, "h", "w"), "fixed batch of two": (2, 3, 16, 16)}.get(
        kind, (1, 3, 16, 16)
    )
    model = network(shape)
    if kind == "double names":
        for node in model.graph.node:
            node.name = "same"
    if kind == "unsorted":
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    ran = run(written(model, tmp_path), "--output", tmp_path / "out", *TOLD, "--image-size", "16", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["ok"]
    assert ran.json["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}]


def test_class_names_of_the_metadata_are_taken_where_they_fit(run: Any, tmp_path: Path) -> None:
    for text, labels in (("{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}", "abcde"), ('["a", "b"]', "")):
        model = network()
        helper.set_model_props(model, {"names": text})
        ran = run(written(model, tmp_path), "--output", tmp_path / "out", *TOLD, "--json", "--force")
        assert ran.code == 0, ran.err
        found = tmp_path / "out" / "labels.txt"
        assert (found.read_text().split() if found.exists() else []) == list(labels)
        assert ("left out: class names of the file's metadata: 2 names, and it has 5 classes" in ran.err) != bool(
            labels
        )
