"""The small residual networks of He et al. 2015 (arXiv 1512.03385), section 4.2, for images of 28 to 32 pixels."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from calibration.data import FASHION_MNIST_CLASSES
from exporter.models import ModelSpec, Pretrained
from runtimes.bundle import sha256_of_file
from runtimes.preprocess import Preprocess

ASSETS = Path(str(files("exporter.models"))) / "assets"
BLOCKS = {"resnet20": 3}
WIDTHS = (16, 32, 64)


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks with 16, 32 and 64 channels: 6 x blocks + 2 layers.

    Shortcuts that change shape are 1x1 projections (the paper's option B), and the parts carry torchvision's names
    (`conv1 bn1 layer1.0.conv1 ... layer2.0.downsample.0 ... fc`).

    Input: float32 (batch, channels, height, width). Output: logits, float32 (batch, classes).
    """

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def create(spec: ModelSpec, classes: int, channels: int) -> CifarResNet:
    """The network, freshly initialised as in He et al. 2015 (arXiv 1502.01852)."""
    return CifarResNet(BLOCKS[spec.name], channels, classes)


def pretrained(spec: ModelSpec) -> Pretrained:
    """The weights that ship with the package: trained on Fashion-MNIST by `scripts/train.py`."""
    path = ASSETS / f"{spec.name}.safetensors"
    return Pretrained(load_file(path), preprocess(spec), FASHION_MNIST_CLASSES, "shipped", sha256_of_file(path))


def preprocess(spec: ModelSpec) -> Preprocess:
    """Images of the training size, normalised with the training set's mean and standard deviation."""
    facts = json.loads((ASSETS / f"{spec.name}.json").read_text(encoding="utf-8"))
    return Preprocess(spec.size, (spec.size, spec.size), "bilinear", True, tuple(facts["mean"]), tuple(facts["std"]))
