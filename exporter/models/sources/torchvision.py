"""torchvision's ResNets, ResNeXts and Wide ResNets, with its weights, their class names and their preprocessing."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import ResNet50_Weights, WeightsEnum, get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from exporter.models.find_network import Checkpoint, FittedModule
from exporter.models.registry import V1
from exporter.models.spec import ModelSpec, Pretrained
from exporter.models.state_names import resnet_from_state
from runtimes.bundle import sha256_of_file
from runtimes.errors import WeightsUnavailable
from runtimes.preprocess import Preprocess

NETWORK_TIMEOUT_SECONDS = 10.0
CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.")
"""In the names of torchvision's files: the beginning of the sha256."""


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """Make torchvision's model; for another stem or number of input channels, with another first convolution."""
    architecture = spec.architecture
    assert architecture is not None
    block = Bottleneck if architecture.bottleneck else BasicBlock
    model: nn.Module = ResNet(
        block,
        list(architecture.blocks),
        num_classes=classes or spec.classes,
        groups=architecture.groups,
        width_per_group=architecture.width,
    )
    if architecture.stem == "cifar" or channels not in (None, 3):
        kernel, stride = (3, 1) if architecture.stem == "cifar" else (7, 2)
        stem = nn.Conv2d(channels or 3, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
    if architecture.stem == "cifar":
        model.maxpool = nn.Identity()
    if spec.variant == V1:
        for part in model.modules():
            if isinstance(part, Bottleneck):
                part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
    return model


def load(spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
    """Make the model with a checkpoint's weights, whatever its training script called the parts."""
    return resnet_from_state(create, spec, checkpoint)


def pretrained(spec: ModelSpec) -> Pretrained:
    """Make the model with torchvision's default weights, from torchvision's cache or downloaded into it.

    Raises:
        WeightsUnavailable: they could not be fetched, or do not have torchvision's checksum.
    """
    weights = _default_weights(spec)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        _remove_damaged(cached)
        with network_timeout(NETWORK_TIMEOUT_SECONDS), redirect_stdout(sys.stderr):  # torch.hub prints the address
            state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsUnavailable(
            f"cannot fetch {weights.url} ({reason}); without a network use --weights random, "
            "or fetch it elsewhere and give --weights FILE"
        ) from error
    labels = tuple(str(label) for label in weights.meta["categories"])
    module = load(spec, Checkpoint(state, "the default weights")).module
    return Pretrained(module, preprocess(spec), labels, "default", sha256_of_file(cached))


def _remove_damaged(cached: Path) -> None:
    """Remove a file of torch.hub's cache that does not have the checksum in its name, so that it is downloaded again:
    torch.hub checks what it downloads, and never what it has."""
    found = CHECKSUM.search(cached.name)
    if found is not None and cached.is_file() and not sha256_of_file(cached).startswith(found[1]):
        cached.unlink()


def preprocess(spec: ModelSpec) -> Preprocess:
    """The preprocessing with which torchvision evaluates the default weights, or those of its first ResNet-50."""
    preset = (_default_weights(spec) if spec.weights else ResNet50_Weights.IMAGENET1K_V1).transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocess(
        resize, (crop, crop), preset.interpolation.value, bool(preset.antialias), tuple(preset.mean), tuple(preset.std)
    )


def _default_weights(spec: ModelSpec) -> WeightsEnum:
    weights: WeightsEnum = get_model_weights(spec.name)["DEFAULT"]
    return weights


@contextmanager
def network_timeout(seconds: float) -> Iterator[None]:
    """Give every new connection a time limit.

    torch.hub and torchvision set none, and the socket module's default is the only way to give them one.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
