"""Networks with PyTorch's fake quantization, as torch.onnx writes them: a trained network keeps its scales."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantized_files import answers, operators, sqnr_db
from torch import Tensor, nn
from torch.nn import functional

from exporter.lowering.precisions import int8
from exporter.lowering.qdq.lint import lint
from exporter.lowering.requantize.mend import dequantized, mended

PICTURES = np.random.default_rng(2).normal(size=(4, 3, 16, 16)).astype(np.float32)
CHANNELS, LEVELS = 8, 127


class FakeQuantized(nn.Module):
    """A convolution with a batch norm behind it, its input and its weight rounded in training.

    The weight is rounded after it is scaled as the batch norm will scale it, and the output divided by that, which is
    how PyTorch trains a convolution and its batch norm together.
    """

    def __init__(self, ins: int, *, zero_point: int) -> None:
        super().__init__()
        self.conv, self.norm, self.zero_point = nn.Conv2d(ins, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), zero_point
        self.bias = nn.Parameter(torch.randn(1, CHANNELS, 1, 1))
        with torch.no_grad():
            self.norm.weight.uniform_(-1.0, 1.0)  # a negative factor turns the integers' signs

    def forward(self, x: Tensor) -> Tensor:
        low, high = (0, 255) if self.zero_point else (-128, LEVELS)
        x = torch.fake_quantize_per_tensor_affine(x, 0.03, self.zero_point, low, high)
        factor = (self.norm.weight / np.sqrt(1 + self.norm.eps)).reshape(-1, 1, 1, 1)
        weight = (self.conv.weight * factor).detach()
        scale = weight.abs().amax((1, 2, 3)) / LEVELS
        zeros = torch.zeros(CHANNELS, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -128, LEVELS)
        made = functional.conv2d(x, rounded, padding=1) / factor.reshape(1, -1, 1, 1)
        normed: Tensor = self.norm(made + self.bias)
        return normed


class Net(nn.Module):
    def __init__(self, zero_point: int) -> None:
        super().__init__()
        self.stem, self.one, self.two = (FakeQuantized(ins, zero_point=zero_point) for ins in (3, CHANNELS, CHANNELS))
        self.fc = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.fc(torch.relu(x + self.two(torch.relu(self.one(x)))).mean((2, 3)))
        return logits


def exported(folder: Path, zero_point: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is on its way out, and most files of the kind are its own
        torch.onnx.export(
            Net(zero_point).eval(),
            (torch.from_numpy(PICTURES[:1]),),
            folder / "trained.onnx",
            opset_version=17,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "batch"}},
        )
    return onnx.load(folder / "trained.onnx")


@pytest.mark.parametrize("zero_point", [0, 127, 128])
def test_a_trained_network_reaches_tensorrt_with_its_scales(tmp_path: Path, zero_point: int) -> None:
    file = exported(tmp_path, zero_point)
    result = mended(file)
    report = lint(result.model)
    assert report is not None
    assert report.findings == ()
    assert report.convolutions == (3, 3)
    assert report.shortcuts == (1, 1)
    assert sqnr_db(answers(int8.simulation(result.model), PICTURES), answers(file, PICTURES)) > 35
    assert any("folded into the convolution before it" in one for one in result.said)
    scales = {
        float(numpy_helper.to_array(one))
        for one in result.model.graph.initializer
        if one.name.endswith(".scale") and not one.dims
    }
    assert scales == {float(np.float16(0.03))}


def test_the_float_network_behind_it_is_plain(tmp_path: Path) -> None:
    file = exported(tmp_path, 0)
    behind = dequantized(file)
    assert operators(behind) <= {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}
    assert sqnr_db(answers(behind, PICTURES), answers(file, PICTURES)) > 25
