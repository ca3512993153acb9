"""`resnet-export --int8` as a stranger meets it: a proven bundle from real images, or one line that says what to do."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_exports import BATCH, PICTURES, bundle_fixture, pictures_fixture  # noqa: F401  # pytest finds them by their names
from onnx import helper

from calibration.counting import OpenCounter
from calibration.data import built_in
from calibration.table import table_from_file
from exporter import ExportPlan
from exporter.lowering.precisions import int8
from exporter.lowering.ranges import CALIBRATION_IMAGES
from exporter.models.loading import load_model
from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime, check_rounding, rounds_fp16
from runtimes.errors import BackendUnavailable


def test_a_bundle_holds_the_table_and_its_manifest_says_what_was_measured(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    assert set(manifest.files) == {
        "model.onnx",
        "reference.pt2",
        "golden.npz",
        "labels.txt",
        "calibration.json",
        "report.html",
    }
    table = table_from_file(opened.file("calibration.json"))
    assert manifest.calibration is not None
    assert (manifest.calibration.calibrator, manifest.calibration.images, manifest.calibration.fingerprint) == (
        table.calibrator,
        PICTURES,
        table.fingerprint,
    )
    assert (table.images, table.preprocess) == (PICTURES, manifest.preprocess)
    assert {name: table.versions[name] for name in ("numpy", "pillow", "onnxruntime")} == {
        name: manifest.versions[name] for name in ("numpy", "pillow", "onnxruntime")
    }
    model = onnx.load(opened.file("model.onnx"))
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, threshold in table.thresholds(table.calibrator).items():
        assert scales[f"{name}.scale"] == np.float16(threshold / 127)
    assert (manifest.precision, manifest.graph.operators["QuantizeLinear"], manifest.graph.operators["Cast"]) == (
        "int8",
        21,
        2,
    )
    assert manifest.files["model.onnx"].bytes < 0.35 * 4 * manifest.graph.parameters
    assert manifest.parity.ok
    assert manifest.accuracy is not None
    assert manifest.accuracy.images == PICTURES
    assert manifest.accuracy.reference_top1 - manifest.accuracy.top1 <= 0.01
    assert manifest.accuracy.reference_top1 > 0.9


def test_it_runs_on_every_backend_within_its_budget(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    golden = np.load(opened.file("golden.npz"))
    for backend in ("onnxruntime", "pytorch"):
        if backend == "onnxruntime" and not rounds_fp16():
            continue  # refused, as the test below has it
        with open_runtime(opened, backend) as runtime:
            logits = runtime.run({"input": golden["inputs"][:16]})["logits"]
        expected = golden["logits"][:16]
        cosines = (logits * expected).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() >= 0.99, backend


def test_onnxruntime_rounds_fp16_values_where_the_check_says_so() -> None:
    """Before 1.30 its CPU kernel truncates (onnxruntime pull request 32452), and INT8 graphs lose 18 dB in silence."""
    scale = np.float16(0.0371)
    pair = [helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=onnx.TensorProto.INT8)]
    values = [
        helper.make_tensor_value_info(name, kind, [None])
        for name, kind in (("x", onnx.TensorProto.FLOAT16), ("q", onnx.TensorProto.INT8))
    ]
    graph = helper.make_graph(
        pair, "pair", values[:1], values[1:], [onnx.numpy_helper.from_array(np.array(scale), "scale")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.linspace(-4, 4, 1001).astype(np.float16)
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        right = bool((runtime.run({"x": x})["q"] == np.rint(x.astype(np.float32) / np.float32(scale))).mean() > 0.99)
    if right:
        check_rounding()
    else:
        with pytest.raises(BackendUnavailable, match="truncates"):
            check_rounding()


def test_where_onnxruntime_truncates_the_simulation_alone_proves_the_same_file(
    run: Any, bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Python 3.10, whose last onnxruntime is 1.23."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    ran = run("resnet20", "--int8", "--data", pictures, "--output", "out", "--json", "--quiet", *BATCH)
    assert ran.code == 0
    assert list(ran.json["parity"]["backends"]) == ["simulation"]
    assert ran.json["parity"]["batches"] == [1, 4, 16]
    assert (Path("out") / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    with pytest.raises(BackendUnavailable, match=r"onnxruntime 1\.23\.2 truncates .*, expected 1\.30 or newer"):
        open_runtime("out")


def test_the_simulation_quantizes_in_fp32_which_every_onnxruntime_does_rightly(bundle: Path) -> None:
    simulation = int8.simulation(onnx.load(bundle / "model.onnx"))
    graph = onnx.shape_inference.infer_shapes(simulation).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 40
    for node in pairs:
        assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}, node.name


def test_a_table_reused_gives_the_same_bundle_to_the_last_byte(
    run: Any, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    options = [
        "resnet20",
        "--int8",
        "--data",
        pictures,
        "--calibration",
        bundle / "calibration.json",
        "--quiet",
        "--output",
        "out",
        *BATCH,
    ]
    assert run(*options).code == 0
    again = tmp_path / "out"
    for name in ("model.onnx", "calibration.json", "golden.npz", "manifest.json"):
        assert (again / name).read_bytes() == (bundle / name).read_bytes(), name


def test_the_table_of_other_weights_is_refused_on_the_command_line_too(run: Any, bundle: Path, tmp_path: Path) -> None:
    ran = run("resnet20", "--int8", "--weights", "random", "--calibration", bundle / "calibration.json", "--quiet")
    assert ran.code == 1
    assert "calibration.json was not measured on this: model_sha256 is" in ran.error
    assert list(tmp_path.iterdir()) == []


REFUSED = [
    (["--int8", "--data", "nothing"], 2, "--data: nothing does not exist; give a folder of pictures"),
    (["--int8", "--data", "empty"], 2, "--data: empty holds no pictures; expected files such as .jpg, .jpeg, .png, or"),
    (["--int8", "--data", "text"], 2, "--data: text holds no pictures; expected files such as .jpg, .jpeg, .png, or"),
    (["--int8", "--data", "text/notes.txt"], 2, "expected an IDX file of unsigned bytes"),
    (["--int8", "--data", "torn"], 2, "none of the 1 pictures of torn can be read"),
    (
        ["--int8", "--data", "few", "--calibration-images", "5", "--allow-few-images"],
        2,
        "--calibration-images asks for 5, but few has 4; ask for fewer",
    ),
    (["--int8", "--calibration-images", "0"], 2, "expected --calibration-images of at least 1, got 0"),
    (["--int8", "--calibration-images", "-1"], 2, "expected --calibration-images of at least 1, got -1"),
    (["--int8", "--calibrator", "entrop"], 2, "unknown calibrator 'entrop'; did you mean entropy?"),
    (["--int8", "--calibrator", "best"], 2, "unknown calibrator 'best'; choose from entropy, minmax, mse"),
    (["--int8", "--fp16"], 2, "expected one precision, got --fp16 and --int8"),
    (["--calibrator", "mse"], 2, "--calibrator needs --int8: fp32 is not calibrated"),
    (["--fp16", "--calibration-images", "100"], 2, "--calibration-images needs --int8: fp16 is not calibrated"),
    (["--fp16", "--calibration", "table.json"], 2, "--calibration needs --int8"),
    (["--allow-few-images"], 2, "--allow-few-images needs --int8"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_is_asked_for_wrongly_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    for folder in ("empty", "text", "torn", "few"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no picture")
    (tmp_path / "torn" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    for place in range(4):
        built_in("train").image(place).save(tmp_path / "few" / f"{place}.png")
    before = sorted(tmp_path.rglob("*"))
    ran = run("resnet20", *arguments, "--quiet")
    assert (ran.code, says in ran.error) == (code, True), ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_more_calibration_images_than_built_in_ones_are_refused(run: Any, tmp_path: Path) -> None:
    ran = run("resnet20", "--int8", "--calibration-images", "1001", "--quiet")
    assert ran.code == 2
    assert "--calibration-images asks for 1001, but built-in (train) has 1000; ask for fewer" in ran.error
    assert list(tmp_path.iterdir()) == []


def random_state() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_model(
        ExportPlan("resnet20", Path("unused"), weights="random").model_request
    ).module.state_dict()
    return state


def test_a_checkpoint_of_ones_own_needs_ones_own_images(run: Any, tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "c.pth")
    ran = run("resnet20", "--int8", "--weights", "c.pth", "--quiet")
    assert ran.code == 2
    assert "the built-in ones are not what resnet20 was trained on; give --data with a folder" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_activations_that_overflow_are_refused_with_the_tensor_that_holds_them(
    run: Any, pictures: Path, tmp_path: Path
) -> None:
    state = random_state()
    for name in ("bn1.weight", "layer1.0.bn1.weight"):
        state[name] = torch.full_like(state[name], 1e25)
    torch.save(state, tmp_path / "c.pth")
    ran = run("resnet20", "--int8", "--weights", "c.pth", "--data", pictures, "--quiet")
    assert ran.code == 1
    assert "'layer1.0.conv1.out' holds NaN or infinite values on the calibration images" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def saved(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    folder.mkdir()
    source = built_in("train")
    for place in range(count):
        path = folder / f"{place:03}.jpg"
        source.image(place).save(path)
        if place in broken:
            path.write_bytes(path.read_bytes()[:50])
    return folder


def test_one_broken_picture_among_600_is_named_and_the_export_goes_on(run: Any, tmp_path: Path) -> None:
    """The first is among the 64 that the bias is corrected on, of which one would be more than one in a hundred."""
    saved(tmp_path / "pictures", 600, broken=(0, 3))
    ran = run(
        "resnet20",
        "--int8",
        "--data",
        "pictures",
        "--calibration-images",
        "600",
        "--calibrator",
        "minmax",
        "--json",
        *BATCH,
    )
    assert ran.code == 0, ran.err
    assert "left out: cannot read the picture pictures/003.jpg" in "".join(ran.err.splitlines()).replace("\n", "")
    assert ran.err.replace("\n", "").count("pictures/000.jpg: ") == 1
    assert (ran.json["calibration"]["images"], ran.json["calibration"]["calibrator"]) == (598, "minmax")
    assert ran.json["accuracy"] is None


def test_a_hundred_broken_pictures_among_600_are_an_error(run: Any, tmp_path: Path) -> None:
    saved(tmp_path / "pictures", 600, broken=tuple(range(100, 200)))
    ran = run("resnet20", "--int8", "--data", "pictures", "--quiet", *BATCH)
    assert ran.code == 1
    assert (
        f"of the {CALIBRATION_IMAGES} pictures cannot be read, more than 1 %: cannot read the picture pictures/1"
        in ran.error
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_an_interruption_while_calibrating_leaves_nothing(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    inputs = OpenCounter.inputs

    def interrupted(self: OpenCounter, batches: Any) -> Iterator[Any]:
        for batch in inputs(self, batches):
            seen.append(batch)
            if len(seen) == 5:
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(OpenCounter, "inputs", interrupted)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts what it puts in the background with SIGINT ignored
    try:
        ran = run("resnet20", "--int8", "--data", pictures, "--quiet")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130
    assert "interrupted; nothing was written" in ran.error
    assert len(seen) >= 5
    assert list(tmp_path.iterdir()) == []


def test_out_of_budget_ends_with_4_the_worst_block_and_what_to_try(
    run: Any, pictures: Path, bundle: Path, tmp_path: Path
) -> None:
    """One block's ranges are a hundredth of what they should be."""
    table = json.loads((bundle / "calibration.json").read_text())
    for name in table["tensors"]:
        if name.startswith("layer2.1."):
            table["tensors"][name]["thresholds"][table["calibrator"]] /= 100
    (tmp_path / "table.json").write_text(json.dumps(table))
    ran = run("resnet20", "--int8", "--data", pictures, "--calibration", "table.json", "--quiet", *BATCH)
    assert ran.code == 4
    assert "OUT OF BUDGET" in ran.err
    assert re.search(
        r"; layer2\.1 adds the most noise, an SQNR of \d\.\d dB by itself; what helps, by \d\d images: --calibrator \S+ \(SQNR 3\d\.\d dB, ",
        ran.error,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
