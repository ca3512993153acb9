"""The network that `scripts/train.py` begins with: drawn at random, or somebody's weights with a head for other classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _train_data import Data
from torch import nn

from exporter.models.loading import load_model
from exporter.models.preprocessing import with_image_size
from exporter.models.registry import find_model, load_source
from exporter.models.spec import ModelSpec
from exporter.pipeline.plan import ExportPlan
from runtimes.errors import BadInput
from runtimes.parity.budget import number_text
from runtimes.preprocess import Preprocess

SMALL_PIXELS = 64
"""A network whose own input is no larger takes pictures in memory as they are, rather than enlarged."""


@dataclass(frozen=True)
class Network:
    """What is asked for: a registered model, `default` weights, a checkpoint or none, and (height, width) or the natural size."""

    model: str
    weights: str | None
    freeze: bool
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Start:
    """A network before its first step, the part of it to train, and what it expects of pictures."""

    module: nn.Module
    trained: nn.Module
    preprocess: Preprocess
    weights: str | None


def start(network: Network, data: Data, seed: int) -> Start:
    """The network, seeded where weights are drawn.

    Raises:
        UnknownName, BadInput, WeightsUnavailable: no such model, or its weights are not to be had.
    """
    spec = find_model(network.model)
    source = load_source(spec)
    torch.manual_seed(seed)
    own: Preprocess = source.preprocess(spec)
    size = network.image_size or _natural_size(spec, own, data)
    if network.weights is None:
        module: nn.Module = source.create(spec, len(data.classes), data.channels)
        steps = _from_scratch(own if size == own.crop else with_image_size(own, size), _channels(module), data)
        _head(module, _outputs(module, steps, spec), len(data.classes), spec)
        return Start(module, module, steps, None)
    plan = ExportPlan(
        network.model, Path("unused"), weights=network.weights, image_size=None if size == own.crop else size
    )
    loaded = load_model(plan.model_request)
    head = _head(loaded.module, _outputs(loaded.module, loaded.preprocess, spec), len(data.classes), spec)
    return Start(
        loaded.module, head if network.freeze else loaded.module, loaded.preprocess, loaded.facts.weights.sha256
    )


def _natural_size(spec: ModelSpec, own: Preprocess, data: Data) -> tuple[int, int]:
    pixels = data.training.pixels
    if pixels is None or (spec.size is not None and spec.size > SMALL_PIXELS):
        return own.crop
    return int(pixels.shape[2]), int(pixels.shape[3])


def _channels(module: nn.Module) -> int:
    """Of the input: a factory's network has its own, whatever the pictures have."""
    return next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), 3)


def _outputs(module: nn.Module, steps: Preprocess, spec: ModelSpec) -> int:
    """How many logits it gives for one input; leaves it in evaluation mode.

    Raises:
        BadInput: it takes no input of that shape, or gives something else than a row of logits.
    """
    shape = "x".join(map(str, steps.shape))
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(1, *steps.shape))
    except RuntimeError as error:
        raise BadInput(
            f"{spec.name} takes no pictures of {shape}: {str(error).splitlines()[0]}; try another --image-size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise BadInput(
            f"expected {spec.name} to give a row of logits for an input of {shape}, got something else; it is no classifier"
        )
    return int(logits.shape[1])


def _from_scratch(own: Preprocess, channels: int, data: Data) -> Preprocess:
    """Pictures in memory are normalised by what is measured on them, others as the model's own; its mean stands for another number of channels."""
    pixels = data.training.pixels
    if pixels is not None and pixels.shape[1] == channels:
        planes = [pixels[:, channel].double() / 255 for channel in range(pixels.shape[1])]
        return replace(
            own,
            mean=tuple(round(plane.mean().item(), 4) for plane in planes),
            std=tuple(round(plane.std().item(), 4) for plane in planes),
        )
    return own if own.channels == channels else _with_average_channels(own, channels)


def _with_average_channels(own: Preprocess, channels: int) -> Preprocess:
    return replace(own, mean=(sum(own.mean) / own.channels,) * channels, std=(sum(own.std) / own.channels,) * channels)


def _head(module: nn.Module, before: int, classes: int, spec: ModelSpec) -> nn.Module:
    """The last layer, of `before` outputs; a new one of `classes` takes its place where the numbers differ."""
    for name, layer in reversed(list(module.named_modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == before:
            new: nn.Module = nn.Linear(layer.in_features, classes, layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.out_channels == before:
            new = nn.Conv2d(layer.in_channels, classes, 1, bias=layer.bias is not None)
        else:
            continue
        if classes == before:
            return module.get_submodule(name)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, new)
        return new
    raise BadInput(
        f"{spec.name}: expected a last layer of {before} outputs to replace, got none; train it from scratch"
    )


def export_options(model: str, used: Preprocess) -> list[str]:
    """What resnet-export must be told: where the network was not trained with the model's own preprocessing."""
    spec = find_model(model)
    own: Preprocess = load_source(spec).preprocess(spec)
    default = own if own.channels == used.channels else _with_average_channels(own, used.channels)
    options = [] if used.crop == own.crop else ["--image-size", "x".join(map(str, used.crop))]
    for option, values, usual in (("--mean", used.mean, default.mean), ("--std", used.std, default.std)):
        options += [] if values == usual else [option, ",".join(map(number_text, values))]
    return options
