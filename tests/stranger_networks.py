"""Tiny residual networks in the manner of PyTorch, TensorFlow, Keras and Caffe, settled on images so that their logits differ among these."""

from __future__ import annotations

import torch
from stranger_readings import Reading, pictures
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
STEM, WIDE = 16, 32
KERAS_EPSILON = 1.001e-5


def settled(network: nn.Module, reading: Reading, seed: int = 0) -> nn.Module:
    """The network with weights of He's variance and the batch norm statistics of 64 images, in inference mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.momentum = None  # the plain mean over all batches
        network.train()
        for batch in range(4):
            network(torch.from_numpy(reading.network_input(pictures(16, reading.size, seed=100 + batch))))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network.eval()


class Conv(nn.Conv2d):
    """A convolution whose padding may differ before and after, as TensorFlow's SAME does with a stride of 2."""

    def __init__(self, channels: int, rows: int, kernel: int, stride: int, ends: tuple[int, int]) -> None:
        super().__init__(channels, rows, kernel, stride)
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.ends
        return super().forward(functional.pad(x, (before, after, before, after)))


class Block(nn.Module):
    """Two convolutions of 3x3 and a shortcut, projected where the width changes; (batch, channels, height, width) in and out."""

    def __init__(self, channels: int, rows: int, *, same: bool) -> None:
        super().__init__()
        self.stride = 1 if channels == rows else 2
        self.same = same
        self.conv1, self.bn1 = self._conv(channels, rows, 3, self.stride)
        self.conv2, self.bn2 = self._conv(rows, rows, 3, 1)
        self.project = self.stride != 1
        if self.project:
            self.conv0, self.bn0 = self._conv(channels, rows, 1, self.stride)

    def _conv(self, channels: int, rows: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        if not self.same:
            plain = nn.Conv2d(channels, rows, kernel, stride, padding=kernel // 2, bias=False)
            return plain, nn.BatchNorm2d(rows)
        total = max(kernel - stride, 0)
        conv = Conv(channels, rows, kernel, stride, (total // 2, total - total // 2))
        return conv, nn.BatchNorm2d(rows, eps=KERAS_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        shortcut = self.bn0(self.conv0(x)) if self.project else x
        return functional.relu(self.bn2(self.conv2(inner)) + shortcut)


class TinyResNet(nn.Module):
    """Stem of 7x7, pool, two blocks and 10 classes: (batch, 3, height, width) to logits (batch, 10).

    `manner` is "torch"; "caffe", whose pool counts a started window and pads nothing; or "tensorflow", with biases beside
    batch norms, SAME padding and zeros around the pool.
    """

    def __init__(self, manner: str = "torch") -> None:
        super().__init__()
        self.manner = manner
        same = manner == "tensorflow"
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=same)
        self.bn1 = nn.BatchNorm2d(STEM, eps=KERAS_EPSILON if same else 1e-5)
        self.blocks = nn.ModuleList([Block(STEM, STEM, same=same), Block(STEM, WIDE, same=same)])
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(WIDE, CLASSES)

    def pool(self, x: Tensor) -> Tensor:
        if self.manner == "caffe":
            return functional.max_pool2d(x, 3, 2, ceil_mode=True)
        if self.manner == "tensorflow":
            return functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)
        return functional.max_pool2d(x, 3, 2, 1)

    def features(self, x: Tensor) -> Tensor:
        """The map before the average, (batch, 32, height / 8, width / 8)."""
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.fc(self.dropout(pooled.view(pooled.size(0), -1)))
        return logits


class TinyResNetV2(nn.Module):
    """The same size with normalisation *before* each block, as Keras' ResNet50V2 has it: no batch norm stands behind the stem or the sums.

    The pool's border of zeros counts here, since what it pads may be below zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(STEM, eps=KERAS_EPSILON) for _ in range(2))
        self.inner = nn.ModuleList(nn.Conv2d(STEM, STEM, 3, 1, 1, bias=False) for _ in range(2))
        self.inner_norms = nn.ModuleList(nn.BatchNorm2d(STEM, eps=KERAS_EPSILON) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(STEM, STEM, 1) for _ in range(2))
        self.post_bn = nn.BatchNorm2d(STEM, eps=KERAS_EPSILON)
        self.fc = nn.Linear(STEM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.pad(self.conv1(x), (1, 1, 1, 1)), 3, 2)
        for norm, inner, inner_norm, outer in zip(self.norms, self.inner, self.inner_norms, self.outer, strict=True):
            before = functional.relu(norm(x))
            x = x + outer(functional.relu(inner_norm(inner(before))))
        logits: Tensor = self.fc(functional.relu(self.post_bn(x)).mean((2, 3)))
        return logits
