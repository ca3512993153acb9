"""A model with its weights: the default ones, random ones that behave like trained ones, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from calibration.data import ImageSource, built_in, channelled
from exporter import models
from exporter.at_work import first_line, in_its_layer, layers_at_work
from exporter.checkpoints import sha256_of_state, state_from_file
from exporter.labels import checked_labels
from exporter.models import Pretrained
from exporter.plan import ExportPlan
from runtimes._plugins import load_plugin
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import MODES, Preprocess

STATISTICS_IMAGES = 8
RESIDUAL_SCALE = 0.1
PATCH_SHARE = 0.1
"""Of a filter's power. The convolutions behind the first one of a random ResNet-20 so answer real images 5.1 dB louder than white noise of their
inputs' power; a trained one's do by 5.8 dB, white filters by 0 dB."""


@dataclass(frozen=True)
class LoadedModel:
    """A module in evaluation mode, and what the manifest says of it."""

    module: nn.Module
    facts: ModelFacts
    preprocess: Preprocess
    labels: tuple[str, ...] | None


def load_model(plan: ExportPlan) -> LoadedModel:
    """The model that `plan` asks for.

    Raises:
        WeightsUnavailable: the default weights could not be fetched.
        BadInput: a checkpoint that cannot be read, does not fit, or holds values that are not finite; a model that does not
            answer such an image with logits.
        PlanError: --mean, --std or --num-classes do not fit the weights.
    """
    spec = plan.spec
    extra = "timm" if spec.source == "timm" else "export"
    source: Any = load_plugin(models, spec.source, kind="model source", remedy=f"pip install 'resnet-export[{extra}]'")
    with _seeded(plan.seed):
        if plan.weights == "random":
            return _random(source, plan)
        if plan.weights == "default":
            weights: Pretrained = source.pretrained(spec)
            return _loaded(plan, weights.module, WeightsFacts(weights.kind, weights.sha256), weights.preprocess, weights.labels)
        path = Path(plan.weights)
        module = source.load(spec, state_from_file(path), str(path))
    return _loaded(plan, module, WeightsFacts("file", sha256_of_file(path)), source.preprocess(spec), None)


def _random(source: Any, plan: ExportPlan) -> LoadedModel:
    own = source.preprocess(plan.spec)
    channels = len(plan.mean) if plan.mean and len(plan.mean) > 1 else own.channels
    module: nn.Module = source.create(plan.spec, plan.classes or plan.spec.classes, channels)
    preprocess = _adjusted(own, plan, module)
    _answer(module, preprocess, plan)  # refused before the statistics
    _make_random_behave(module, preprocess)
    return _loaded(plan, module, WeightsFacts("random", sha256_of_state(module.state_dict())), own, None)


def _loaded(plan: ExportPlan, module: nn.Module, weights: WeightsFacts, own: Preprocess, labels: tuple[str, ...] | None) -> LoadedModel:
    preprocess = _adjusted(own, plan, module)
    classes = 0 if plan.features else _classes(module, preprocess, plan)
    if plan.classes not in (None, classes):
        where = plan.weights if weights.kind == "file" else plan.model
        raise PlanError(f"--num-classes says {plan.classes}, but {where} has {classes} classes; leave the option out")
    if plan.labels is not None:
        labels = checked_labels(plan.labels, classes)
    facts = ModelFacts(plan.model, plan.spec.source, plan.spec.variant, classes, weights)
    return LoadedModel(module.eval(), facts, preprocess, labels)


def _classes(module: nn.Module, preprocess: Preprocess, plan: ExportPlan) -> int:
    """How many logits the model answers an image with.

    Raises:
        BadInput: it answers with something else, or does not take an image of that size.
    """
    if isinstance(getattr(module, "fc", None), nn.Identity):
        raise BadInput(
            f"{plan.weights} is of a {plan.model} without a head, so there are no logits; give --features pool or stages for what is there"
        )
    answer = _answer(module, preprocess, plan)
    if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[0] != 1:
        got = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise BadInput(f"expected {plan.model} to answer one image with logits of shape (1, classes), got {got}")
    return int(answer.shape[1])


def _answer(module: nn.Module, preprocess: Preprocess, plan: ExportPlan) -> object:
    """What the model answers a black image with; where it fails, the innermost layer that was at work is named."""
    with layers_at_work(module) as inside:
        try:
            with torch.inference_mode():
                return module.eval()(torch.zeros(1, *preprocess.shape))
        except Exception as error:  # it is anybody's code
            where = in_its_layer(inside[-1]) if inside else ""
            shape = "x".join(map(str, preprocess.shape))
            raise BadInput(f"{plan.model} does not take an image of {shape}{where}: {first_line(error)}; choose another --image-size") from error


def _adjusted(own: Preprocess, plan: ExportPlan, module: nn.Module) -> Preprocess:
    """The model's own preprocessing, changed by --image-size, --mean and --std; one value stands for every channel.

    The channels are those of the module's first convolution.
    """
    channels = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), own.channels)

    def values(given: tuple[float, ...] | None, default: tuple[float, ...], option: str) -> tuple[float, ...]:
        chosen = given or default
        if len(chosen) == channels:
            return chosen
        if len(chosen) == 1:
            return chosen * channels
        if given is None:
            return (sum(default) / len(default),) * channels
        raise PlanError(f"expected {option} with 1 or {channels} values, got {len(given)}; the model has {channels} input channels")

    changed = replace(own, mean=values(plan.mean, own.mean, "--mean"), std=values(plan.std, own.std, "--std"))
    if plan.image_size is None:
        return changed
    # The shorter side keeps its ratio to the crop, as when the model was evaluated.
    ratio = own.resize / min(own.crop) if isinstance(own.resize, int) else 1.0
    square = plan.image_size[0] == plan.image_size[1]
    resize = round(plan.image_size[0] * ratio) if square else plan.image_size
    return replace(changed, resize=resize, crop=plan.image_size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from `seed` on; a factory may initialise its module with them, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _make_random_behave(module: nn.Module, preprocess: Preprocess) -> None:
    """Give random weights the activations and the noise stability of a trained network, in place.

    Plain random weights make logits of 1e8 at ResNet-152's depth, and a network so chaotic that rounding changes the answer. So the
    last batch norm of each residual branch gets the weight 0.1 (its usual start is 0; Goyal et al. 2017, arXiv 1706.02677,
    section 5.1), and batch-norm statistics are those of real images.

    A trained network damps noise, for its filters look for what its inputs hold (Arora et al. 2018, arXiv 1802.05296). White filters
    pass noise on as they do the images, batch norm takes off the images' mean and scales up the rest, and the noise gains on them in
    every layer: of a picture of 352 pixels rounded to eight bits, 35 dB were left in a ResNet-50's first stage and 27 dB in its last. So each
    filter takes in a patch of what its convolution is fed (Lehmann and Ebner 2021, "Are Image Patches Beneficial for Initializing Convolutional
    Neural Network Models?", do so before training).
    """
    for block in module.modules():
        last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if isinstance(last, nn.BatchNorm2d):
            nn.init.constant_(last.weight, RESIDUAL_SCALE)
    source = built_in("train") if preprocess.channels in MODES else channelled(built_in("train"), preprocess.channels)
    inputs = torch.from_numpy(inputs_from_source(source, preprocess, STATISTICS_IMAGES))
    hooks = []
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a cumulative average: after one batch, that batch's statistics
        elif isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_pre_hook(_take_in_patches))
    with torch.inference_mode():
        module.train()(inputs)
    for hook in hooks:
        hook.remove()
    module.eval()


def _take_in_patches(layer: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
    """Blend a centred patch of the inputs, from a random place of a random image, into each filter; its norm stays about what it was."""
    if len(inputs) != 1 or inputs[0].ndim != 4:
        return  # anybody's network may feed a convolution otherwise; its filters stay white
    weight, (filters, channels, height, width) = layer.weight, layer.weight.shape
    centred = inputs[0] - inputs[0].mean((0, 2, 3), keepdim=True)
    padded = functional.pad(centred, (width // 2, width // 2, height // 2, height // 2))
    image, top, left = (
        torch.randint(int(count), (filters, 1, 1, 1)) for count in (len(padded), padded.shape[2] - height + 1, padded.shape[3] - width + 1)
    )
    channel = (torch.arange(filters) // (filters // layer.groups) * channels)[:, None] + torch.arange(channels)
    patches = padded[image, channel[:, :, None, None], top + torch.arange(height)[:, None], left + torch.arange(width)]
    norms, own = (torch.linalg.vector_norm(one, dim=(1, 2, 3), keepdim=True) for one in (patches, weight))
    patches *= own / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    weight.copy_((1 - PATCH_SHARE) ** 0.5 * weight + PATCH_SHARE**0.5 * patches)


def inputs_from_source(source: ImageSource, preprocess: Preprocess, count: int) -> NDArray[np.float32]:
    """The first `count` pictures as the model's input, float32 (count, channels, height, width).

    Raises:
        BadInput: one cannot be read, or has other channels than the model.
    """
    return np.stack([preprocess(source.picture(place)) for place in range(min(count, source.count))])
