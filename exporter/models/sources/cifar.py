"""Residual networks for images of 28 to 32 pixels.

Those of He et al. 2015 (arXiv 1512.03385, section 4.2), and torchvision's with a small stem.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, conv1x1

from calibration.data import FASHION_MNIST_CLASSES
from exporter.models.find_network import Checkpoint, FittedModule
from exporter.models.registry import PAD, PROJECTION
from exporter.models.sources import torchvision
from exporter.models.spec import ModelSpec, Pretrained
from exporter.models.state_names import resnet_from_state
from runtimes.bundle import sha256_of_file
from runtimes.preprocess import Preprocess

ASSETS = Path(str(files("exporter.models"))) / "assets"
WIDTHS = (16, 32, 64)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PadShortcut(nn.Module):
    """The paper's option A: every other row and column, and channels of zeros, half of them before and half after."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.before, self.behind = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks with 16, 32 and 64 channels: 6 x blocks + 2 layers.

    Shortcuts that change shape are 1x1 projections (the paper's option B) or padded (option A). The parts have
    torchvision's names (`conv1 bn1 layer1.0.conv1 ... layer2.0.downsample.0 ... fc`).

    Input: float32 (batch, channels, height, width). Output: logits, float32 (batch, classes).
    """

    def __init__(self, blocks: int, channels: int, classes: int, *, shortcut: str = PROJECTION) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, shortcut)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, shortcut)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, shortcut)
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


def _stage(inputs: int, outputs: int, blocks: int, shortcut: str) -> nn.Sequential:
    """A stage of basic blocks; if it widens, it halves the image as well."""
    changed: nn.Module | None = None
    if inputs != outputs and shortcut == PAD:
        changed = PadShortcut(outputs - inputs)
    elif inputs != outputs:
        changed = nn.Sequential(conv1x1(inputs, outputs, 2), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, 1 if changed is None else 2, changed)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """Make the network, freshly initialised as in He et al. 2015 (arXiv 1502.01852)."""
    assert spec.architecture is not None
    if len(spec.architecture.blocks) == 4:
        return torchvision.create(spec, classes, channels)
    return CifarResNet(
        spec.architecture.blocks[0], channels or preprocess(spec).channels, classes or 10, shortcut=spec.variant
    )


def load(spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
    """Make the model with a checkpoint's weights, whatever its training script called the parts."""
    return resnet_from_state(create, spec, checkpoint)


def pretrained(spec: ModelSpec) -> Pretrained:
    """Make the model with the weights that ship with this package, trained on Fashion-MNIST by `scripts/train.py`."""
    path = ASSETS / f"{spec.name}.safetensors"
    module = load(spec, Checkpoint(load_file(path), "the shipped weights")).module
    return Pretrained(module, preprocess(spec), FASHION_MNIST_CLASSES, "shipped", sha256_of_file(path))


def preprocess(spec: ModelSpec) -> Preprocess:
    """Images of the training size, normalised with the training set's mean and standard deviation.

    The training set is that of the shipped weights; without such it is CIFAR-10.
    """
    assert spec.size is not None
    mean, std = CIFAR10_MEAN, CIFAR10_STD
    if spec.weights:
        facts = json.loads((ASSETS / f"{spec.name}.json").read_text(encoding="utf-8"))
        mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return Preprocess(spec.size, (spec.size, spec.size), "bilinear", True, mean, std)
