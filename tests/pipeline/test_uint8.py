"""`--uint8-input`: pixels in, normalised in the graph, and equal to normalising outside, at the borders too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from classified import assert_classified_as_by_the_reference
from commands import Ran, run_main
from numpy.typing import NDArray
from onnx import numpy_helper
from rounding import RUNNABLE, runs_here
from rtx_builds import build_in_precision
from torch import Tensor, nn

from calibration.data import built_in
from exporter.cli import deploy
from exporter.graph.pixel_input import with_uint8_input
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.precisions import fp32
from exporter.lowering.registry import precision_names
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.images import Candidate, Graphs, Images
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput
from runtimes.parity.golden import golden_arrays, golden_report
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange, TensorSpec

BATCH = BatchRange(1, 4, 16)
COLOUR = Preprocess(28, (28, 24), "bilinear", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 24, 3), np.uint8)


class Grouped(nn.Module):
    """A first convolution of which each channel sees its own input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv1(x).mean((2, 3))
        return result


def float_graph(module: nn.Module) -> onnx.ModelProto:
    traced = onnx_from_program(program_from_module(module, COLOUR.shape), opset=20, batch=BATCH)
    return simplify(traced, COLOUR.normalise(PIXELS))


@pytest.fixture(scope="module")
def network() -> CifarResNet:
    torch.manual_seed(0)
    module = CifarResNet(1, 3, 10).eval()
    nn.init.normal_(module.bn1.bias)
    return module


@pytest.fixture(scope="module")
def graph(network: CifarResNet) -> onnx.ModelProto:
    return float_graph(network)


def ran(model: onnx.ModelProto, array: NDArray[Any], name: str) -> NDArray[Any]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    if name not in {value.name for value in exposed.graph.output}:
        exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    with OnnxRuntime.from_bytes(exposed.SerializeToString()) as runtime:
        return runtime.run({"input": array})[name]


@pytest.fixture
def bundles(shipped_bundle: Any) -> Callable[[str], Bundle]:
    """The shipped ResNet-20 with its preprocessing inside."""
    return partial(shipped_bundle, uint8="crop")


@pytest.mark.parametrize("precision", precision_names())
def test_a_bundle_takes_pixels_and_is_proven_against_preprocessing_outside(bundles: Any, precision: str) -> None:
    bundle = bundles(precision)
    manifest = bundle.manifest
    assert manifest.inputs == (TensorSpec("input", "uint8", ("batch", 28, 28, 1)),)
    assert manifest.outputs == (TensorSpec("logits", "float32", ("batch", 10)),)
    assert (manifest.name, manifest.parity.ok) == (f"resnet20-uint8-{precision}", True)
    assert manifest.accuracy is not None
    assert manifest.accuracy.reference_top1 > 0.9
    inputs, golden = golden_arrays(bundle)
    assert (inputs.dtype.name, inputs.shape[1:]) == ("uint8", (28, 28, 1))
    with open_runtime(bundle, "pytorch") as runtime:  # the network itself, preprocessed outside
        reference = runtime.run({"input": manifest.preprocess.normalise(inputs)})["logits"]
        assert golden_report(bundle, "pytorch", runtime).ok
    np.testing.assert_allclose(golden["logits"], reference, rtol=1e-4, atol=1e-4)
    if runs_here(precision):
        with open_runtime(bundle) as runtime:
            assert golden_report(bundle, "onnxruntime", runtime).ok
            with pytest.raises(BadInput, match="expected uint8, got float32"):
                runtime.run({"input": inputs.astype(np.float32)})


@pytest.mark.parametrize("precision", precision_names())
def test_tensorrt_takes_pixels_and_builds_in_the_precision_asked_for(bundles: Any, precision: str) -> None:
    assert build_in_precision(bundles(precision), BATCH).facts.convolutions == {precision: 21}


def test_the_first_convolution_gives_what_it_gives_for_normalised_input_at_the_borders_too(
    graph: onnx.ModelProto,
) -> None:
    inside = with_uint8_input(graph, COLOUR)
    expected = ran(graph, COLOUR.normalise(PIXELS), "conv1.out")
    found = ran(inside, PIXELS, "conv1.out")
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    # The mean in the bias would be the same inside and wrong along the border.
    folded = onnx.ModelProto()
    folded.CopyFrom(inside)
    tensors = {tensor.name: tensor for tensor in folded.graph.initializer}
    weight, bias, mean = (
        numpy_helper.to_array(tensors[name]) for name in ("conv1.weight", "conv1.bias", "pixels.mean")
    )
    tensors["conv1.bias"].CopyFrom(numpy_helper.from_array(bias - (weight * mean).sum((1, 2, 3)), "conv1.bias"))
    tensors["pixels.mean"].CopyFrom(numpy_helper.from_array(np.zeros_like(mean), "pixels.mean"))
    wrong = np.abs(ran(folded, PIXELS, "conv1.out") - expected) / np.abs(expected).max()
    assert wrong[:, :, 1:-1, 1:-1].max() < 1e-5
    assert wrong[:, :, 0].max() > 0.1


def test_the_division_is_folded_into_the_first_convolution(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    inside = with_uint8_input(graph, COLOUR)
    assert graph.SerializeToString(deterministic=True) == before
    names = [node.name for node in inside.graph.node]
    assert names[:4] == ["pixels.cast", "pixels.transpose", "pixels.centre", "conv1"]
    assert len(names) == len(graph.graph.node) + 3
    logits = ran(graph, COLOUR.normalise(PIXELS), "logits")
    np.testing.assert_allclose(ran(inside, PIXELS, "logits"), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_where_it_cannot_be_folded_the_division_stays_a_node() -> None:
    torch.manual_seed(0)
    graph = float_graph(Grouped())
    inside = with_uint8_input(graph, COLOUR)
    assert [node.name for node in inside.graph.node][:4] == [
        "pixels.cast",
        "pixels.transpose",
        "pixels.centre",
        "pixels.normalise",
    ]
    logits = ran(graph, COLOUR.normalise(PIXELS), "logits")
    np.testing.assert_allclose(ran(inside, PIXELS, "logits"), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("make", [partial(CifarResNet, 1, 3, 10), Grouped], ids=["folded", "grouped"])
def test_a_network_that_takes_blue_first_gets_it_from_pixels_that_have_red_first(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    blue = replace(COLOUR, channels_order="bgr")
    graph = float_graph(make().eval())
    inside = with_uint8_input(graph, blue)
    logits, found = ran(graph, blue.normalise(PIXELS), "logits"), ran(inside, PIXELS, "logits")
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert np.abs(ran(with_uint8_input(graph, COLOUR), PIXELS, "logits") - logits).max() > 0.01 * np.abs(logits).max()
    added = 3 if make is not Grouped else 5  # where they fold, the weights change places, and that costs nothing
    assert len(inside.graph.node) == len(graph.graph.node) + added


def test_a_wrong_mean_is_caught_by_the_proof(network: CifarResNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    save_program(program_from_module(network, COLOUR.shape), tmp_path / "reference.pt2")
    images = ProofImages(Images(COLOUR.normalise(PIXELS), None, PIXELS), len(PIXELS))
    inside = with_uint8_input(graph, COLOUR)
    onnx.save(inside, tmp_path / "model.onnx")
    candidate = Candidate(tmp_path, Graphs(inside, None), BATCH, ("onnxruntime",))
    assert prove(candidate, images, budget=fp32.BUDGET).report.ok
    other = Preprocess(28, (28, 24), "bilinear", True, (0.485, 0.456, 0.407), (0.229, 0.224, 0.225))
    onnx.save(with_uint8_input(graph, other), tmp_path / "model.onnx")
    report = prove(candidate, images, budget=fp32.BUDGET).report
    assert not report.ok
    assert report.backends["onnxruntime"].violations[0].startswith("largest relative error")


@pytest.mark.parametrize("std", [0.1, 0.225, 1.0, 3.0])
@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.485, 1.0])
def test_every_pixel_comes_back_from_what_was_made_of_it(mean: float, std: float) -> None:
    preprocess = Preprocess(None, (16, 16), "bilinear", True, (mean,), (std,))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(preprocess.pixels_from_inputs(preprocess.normalise(pixels)), pixels)


def test_pixels_are_what_preprocessing_normalises() -> None:
    image = built_in("test").image(0).convert("RGB").resize((40, 30))
    pixels = COLOUR.pixels(image)
    assert (pixels.dtype.name, pixels.shape) == ("uint8", (28, 24, 3))
    np.testing.assert_array_equal(COLOUR.normalise(pixels), COLOUR(image))
    expected = (pixels.astype(np.float64) / 255 - COLOUR.mean) / COLOUR.std
    np.testing.assert_allclose(COLOUR(image), expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_classify_feeds_pixels_where_the_model_takes_them(bundles: Any) -> None:
    images = [built_in("test").image(place).resize((50, 37)) for place in range(6)]
    assert_classified_as_by_the_reference(bundles("fp32"), images)


def test_resnet_deploy_run_names_what_is_in_a_picture(
    bundles: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, picture = bundles(RUNNABLE), tmp_path / "boot.png"
    built_in("test").image(0).convert("RGB").save(picture)
    told: Ran = run_main(deploy.main, ("run", bundle.folder, picture), capsys, monkeypatch)
    assert "Ankle boot" in told.out.splitlines()[1]
    shown: Ran = run_main(deploy.main, ("inspect", bundle.folder), capsys, monkeypatch)
    assert "input uint8 batchx28x28x1" in shown.out


def test_the_command_takes_it_together_with_features(run: Any) -> None:
    made = run("resnet20", "--uint8-input", "--features", "stages", "--fp16", "--batch", "1:2:4")
    assert made.code == 0
    manifest = Bundle.open(Path("resnet20-stages-uint8-fp16")).manifest
    assert (manifest.inputs[0].dtype, [spec.name for spec in manifest.outputs]) == (
        "uint8",
        ["layer1", "layer2", "layer3"],
    )
