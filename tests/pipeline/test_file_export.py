"""`resnet-export FILE.onnx`: files of every make end as bundles that answer as the network behind the file does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image
from stranger_elsewhere import ELSEWHERE, elsewhere
from stranger_files import FILES, stranger
from stranger_graphs import Made
from stranger_makers import MAKERS, class_index, external_data, legacy, legacy_resnet18, legacy_training
from stranger_networks import settled
from stranger_readings import Reading, pictures, scores

from exporter import ExportPlan, export
from runtimes import open_runtime
from runtimes._open import open_reference
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, PlanError
from runtimes.parity.compare import class_scores
from runtimes.specs import BatchRange

FLOAT = [
    name for name in MAKERS if name not in ("several_outputs", "own_normalisation", "qoperator") and name[0] != "q"
]
AT_HAND = ("ppocr_direction", "light_shufflenet")
CLOSE = 2e-6
"""Of the largest logit: the last bits of FP32."""


def plan_for(path: Path, reading: Reading, output: Path, **changes: Any) -> ExportPlan:
    told: dict[str, Any] = {
        "image_size": reading.size,
        "mean": reading.mean,
        "std": reading.std,
        "scale": reading.scale,
        "channels_order": reading.order,
        "report": False,
    }
    return ExportPlan(str(path), output, **{**told, **changes})


def saved(made: Made, folder: Path) -> Path:
    onnx.save(made.model, folder / "model.onnx")
    return folder / "model.onnx"


def answers_of(bundle: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A bundle's scores for images, uint8 (count, height, width, 3), by its own preprocessing."""
    manifest = Bundle.open(bundle).manifest
    with open_runtime(bundle) as runtime:
        inputs = np.stack([manifest.preprocess(Image.fromarray(image)) for image in images])
        return class_scores(runtime.run({"input": inputs}))


def logits_of(made: Made, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network that the file was made from answers, in PyTorch."""
    assert made.network is not None
    with torch.inference_mode():
        found: NDArray[np.float32] = made.network(torch.from_numpy(made.reading.network_input(images))).numpy()
    return found


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FLOAT)
def test_a_file_of_any_make_becomes_a_bundle_that_answers_as_its_network_does(name: str, tmp_path: Path) -> None:
    made = MAKERS[name]()
    result = export(plan_for(saved(made, tmp_path), made.reading, tmp_path / "out"))
    manifest, images = result.manifest, pictures(5, made.reading.size)

    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("input", ("batch", 3, *made.reading.size))]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("logits", ("batch", made.reading.classes))]
    assert distance(answers_of(result.folder, images), logits_of(made, images)) < CLOSE
    assert manifest.graph.operators.keys() <= {
        "Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Flatten", "Gemm", "Mul", "Pad", "AveragePool", "Reshape",
    }  # fmt: skip
    names = [node.name for node in onnx.load(result.folder / "model.onnx").graph.node]
    assert all(names)
    assert len(names) == len(set(names))
    assert not any("/" in one or ":" in one for one in names)


def test_each_step_that_was_taken_is_said(tmp_path: Path) -> None:
    steps = {}
    for name in ("tensorflow_nhwc", "caffe_bgr"):
        (tmp_path / name).mkdir()
        made = MAKERS[name]()
        result = export(plan_for(saved(made, tmp_path / name), made.reading, tmp_path / name / "out"))
        assert result.manifest.source_file is not None
        steps[name] = result.manifest.source_file.steps
    assert steps["tensorflow_nhwc"] == (
        "Softmax behind the logits removed",
        "opset 9 converted to 20",
        "input changed from (batch, height, width, channels) to (batch, channels, height, width), and its Transpose removed",
        "2 Pads folded into the convolution or pool behind",
        "folded into convolutions and matrix products: 6 of 6 batch norms, 6 constants of Mul, Div, Add or Sub",
        "1 Transpose before a mean removed, 1 ReduceMean replaced by GlobalAveragePool, 1 MatMul replaced by Gemm",
    )
    assert steps["caffe_bgr"] == (
        "45 weights no longer listed as inputs",
        "Softmax behind the logits removed",
        "opset 7 converted to 20",
        "batch of 1 made free (1 Reshape rewritten); its answers are the same at batches of 1, 2, 3",
        "folded into convolutions and matrix products: 6 of 6 batch norms, 12 constants of Mul, Div, Add or Sub",
        "1 Reshape or Squeeze replaced by Flatten",
    )


def test_the_file_is_the_reference_as_it_came(tmp_path: Path) -> None:
    made = MAKERS["caffe_bgr"]()
    path = saved(made, tmp_path)
    folder = export(plan_for(path, made.reading, tmp_path / "out", precision="fp16")).folder
    bundle, images = Bundle.open(folder), pictures(7, made.reading.size)

    assert (folder / "reference.onnx").read_bytes() == path.read_bytes()
    assert bundle.manifest.model.name == "model.onnx"
    with open_reference(bundle) as reference:
        found = reference.run({"input": made.reading.network_input(images)})["logits"]
    assert distance(found, logits_of(made, images)) < CLOSE
    with np.load(folder / "golden.npz") as golden:
        probabilities = scores(path, golden["inputs"], "prob")
        shifted = np.exp(golden["logits"] - golden["logits"].max(1, keepdims=True))
    assert np.abs(shifted / shifted.sum(1, keepdims=True) - probabilities).max() < 1e-6
    with pytest.raises(
        BackendUnavailable, match="no PyTorch program: the bundle was made from the ONNX file model.onnx"
    ):
        open_runtime(folder, "pytorch")


def test_a_softmax_may_stay(tmp_path: Path) -> None:
    made = MAKERS["keras_v2"]()
    path = saved(made, tmp_path)
    folder = export(plan_for(path, made.reading, tmp_path / "out", keep_softmax=True)).folder
    images = pictures(4, made.reading.size)
    found = answers_of(folder, images)
    assert [spec.name for spec in Bundle.open(folder).manifest.outputs] == ["probabilities"]
    assert np.abs(found - scores(path, made.reading.file_input(images))).max() < 1e-6


def test_several_outputs_keep_their_names_and_shapes(tmp_path: Path) -> None:
    made = MAKERS["several_outputs"]()
    result = export(plan_for(saved(made, tmp_path), made.reading, tmp_path / "out"))
    shapes = {spec.name: spec.shape for spec in result.manifest.outputs}
    assert shapes == {"map": ("batch", 32, 8, 8), "embedding": ("batch", 32), "logits": ("batch", 10)}
    assert list(result.manifest.parity.backends["onnxruntime"].outputs) == ["map", "embedding", "logits"]


def test_a_file_that_normalises_its_pixels_is_recognised(tmp_path: Path) -> None:
    made = MAKERS["own_normalisation"]()
    path = saved(made, tmp_path)
    result = export(ExportPlan(str(path), tmp_path / "out", report=False))
    preprocess, images = result.manifest.preprocess, pictures(4, made.reading.size)
    assert (preprocess.mean, preprocess.std) == ((0.0,) * 3, (1 / 255,) * 3)
    assert distance(answers_of(result.folder, images), logits_of(made, images)) < CLOSE
    assert result.manifest.source_file is not None
    assert result.manifest.source_file.steps[-1] == (
        "its own normalisation kept: pixels of 0..255, mean 123.7, 116.3, 103.5, std 58.4, 57.12, 57.37"
    )
    with pytest.raises(PlanError, match="--mean would normalise pixels that model.onnx normalises itself"):
        export(ExportPlan(str(path), tmp_path / "other", mean=(0.5,), report=False))


def test_weights_in_other_files_travel_inside_of_the_reference(tmp_path: Path) -> None:
    path, made = external_data(tmp_path), legacy()
    folder = export(plan_for(path, made.reading, tmp_path / "out")).folder
    reference = onnx.load(folder / "reference.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in reference.graph.initializer)
    images = pictures(3, made.reading.size)
    assert distance(answers_of(folder, images), logits_of(made, images)) < CLOSE


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (legacy_training, "got BatchNormalization '/bn1/BatchNormalization' in training mode"),
        (class_index, "expected scores, got 'class', which ArgMax '/ArgMax' makes"),
    ],
)
def test_a_file_that_gives_no_scores_of_one_image_is_refused(
    make: Callable[[], Made], says: str, tmp_path: Path
) -> None:
    made = make()
    with pytest.raises(BadInput, match=says):
        export(plan_for(saved(made, tmp_path), made.reading, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    "name", [name if name in AT_HAND else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_a_real_file_becomes_a_bundle(name: str, tmp_path: Path) -> None:
    file, path = FILES[name], stranger(name)
    if file.reading is None:
        with pytest.raises(BadInput, match=r"got If 'If_0' which chooses or repeats a part of the network"):
            export(plan_for(path, FILES["dlib_gender"].reading or Reading((1, 1), "", 0, 0), tmp_path / "out"))
        return
    changes: dict[str, Any] = {"keep_softmax": file.reading.softmax}
    if file.reading.classes == 1:  # a single logit may be near zero, and errors are relative to it
        changes["budget"] = {"max_relative_error": 1e-4}
    folder = export(plan_for(path, file.reading, tmp_path / "out", **changes)).folder
    images = pictures(3, file.reading.size)
    expected = scores(path, file.reading.file_input(images), file.reading.output)
    assert np.abs(answers_of(folder, images) - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ELSEWHERE if name.startswith(("tf2onnx", "keras"))])
def test_tensorflows_networks_answer_as_tensorflow_does(name: str, tmp_path: Path) -> None:
    file = elsewhere(name)
    assert file.images is not None
    assert file.answers is not None
    folder = export(plan_for(file.path, file.reading, tmp_path / "out", keep_softmax=file.reading.softmax)).folder
    manifest = Bundle.open(folder).manifest
    with open_runtime(folder) as runtime:
        found = runtime.run({"input": file.reading.network_input(file.images)})[manifest.outputs[0].name]
    assert distance(found, file.answers) < 1e-4


def timm_network() -> Made:
    """A network of timm's, with pixels of 64, by PyTorch's older exporter."""
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", pretrained=False, num_classes=10)
    return legacy(17, 1, settled(network, legacy().reading))


TWINS = {
    "resnet18": pytest.param(legacy_resnet18, id="resnet18", marks=pytest.mark.slow),
    "timm": pytest.param(timm_network, id="timm", marks=pytest.mark.slow),
    "channels last": pytest.param(MAKERS["tensorflow_nhwc"], id="channels last"),
}


@pytest.mark.parametrize("make", TWINS.values())
def test_a_factory_and_a_file_of_the_same_network_agree_to_the_last_bits(
    make: Callable[[], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    module = ModuleType("twin_of_a_file")
    module.make = lambda: made.network  # type: ignore[attr-defined]  # a module has what is put into it
    monkeypatch.setitem(sys.modules, "twin_of_a_file", module)
    files = {}
    for name, model in (("file", saved(made, tmp_path)), ("factory", Path("twin_of_a_file:make"))):
        files[name] = export(plan_for(model, made.reading, tmp_path / name)).folder
    images = pictures(8, made.reading.size)
    assert distance(answers_of(files["file"], images), answers_of(files["factory"], images)) < CLOSE
    counts = [Bundle.open(folder).manifest.graph.operators for folder in files.values()]
    assert counts[0]["Conv"] == counts[1]["Conv"]


def fixed_at_one() -> Made:
    """A file for one image, which writes that down where nothing can free it."""
    made = legacy()
    graph = made.model.graph
    graph.node.append(helper.make_node("Reshape", ["logits", "five"], ["flat"], name="flat"))
    graph.node.append(helper.make_node("Reshape", ["flat", "whole"], ["again"], name="again"))
    graph.initializer.append(numpy_helper.from_array(np.array([10]), "five"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 10]), "whole"))
    graph.output[0].name = "again"
    return made


def test_a_batch_that_cannot_be_made_free_stays_and_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = fixed_at_one()
    path = saved(made, tmp_path)
    result = export(plan_for(path, made.reading, tmp_path / "out"))
    assert "onnxruntime" not in capfd.readouterr().err  # it would tell of the batches that were tried
    source = result.manifest.source_file
    assert source is not None
    assert "batch left at 1, since the graph fails at another, or gives other answers" in source.steps
    assert (result.manifest.batch, result.manifest.inputs[0].shape[0]) == (BatchRange(1, 1, 1), 1)
    images = pictures(3, made.reading.size)
    assert distance(answers_of(result.folder, images), logits_of(made, images)) < CLOSE
    with pytest.raises(PlanError, match="--batch says 1:2:4, but model.onnx takes batches of 1 alone; leave it out"):
        export(plan_for(path, made.reading, tmp_path / "other", batch=BatchRange(1, 2, 4)))
