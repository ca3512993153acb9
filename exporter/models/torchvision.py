"""The ResNets, ResNeXts and Wide ResNets of torchvision, with torchvision's weights and what those weights say of themselves."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from exporter.models import ModelSpec, Pretrained
from runtimes.bundle import sha256_of_file
from runtimes.errors import WeightsUnavailable
from runtimes.preprocess import Preprocess

NETWORK_TIMEOUT_SECONDS = 10.0


def create(spec: ModelSpec, classes: int, channels: int) -> nn.Module:
    """torchvision's model; with another number of input channels than three, its first convolution is made anew."""
    model: nn.Module = get_model(spec.name, weights=None, num_classes=classes)
    if channels != 3:
        stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
    return model


def pretrained(spec: ModelSpec) -> Pretrained:
    """torchvision's default weights, from its cache or downloaded into it.

    Raises:
        WeightsUnavailable: they could not be fetched, or what came is not what torchvision's checksum says.
    """
    weights = _default_weights(spec)
    try:
        with _network_timeout(NETWORK_TIMEOUT_SECONDS):
            state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsUnavailable(
            f"cannot fetch {weights.url} ({reason}); without a network use --weights random, or fetch it elsewhere and give --weights FILE"
        ) from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    labels = tuple(str(label) for label in weights.meta["categories"])
    return Pretrained(state, preprocess(spec), labels, "default", sha256_of_file(cached))


def preprocess(spec: ModelSpec) -> Preprocess:
    """What torchvision's default weights were evaluated with."""
    preset = _default_weights(spec).transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocess(resize, (crop, crop), preset.interpolation.value, bool(preset.antialias), tuple(preset.mean), tuple(preset.std))


def _default_weights(spec: ModelSpec) -> WeightsEnum:
    weights: WeightsEnum = get_model_weights(spec.name)["DEFAULT"]
    return weights


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its connections without a time limit; the socket module's default is the only way to give it one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
