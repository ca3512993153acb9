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
from exporter.answers import Attempt, as_exported, attempt, described, logits_within, side_that_fits
from exporter.at_work import layers_at_work, others_code, place, reason
from exporter.checkpoints import sha256_of_state, state_from_file
from exporter.hugging_face import check_form, config_beside
from exporter.labels import checked_labels
from exporter.models import Pretrained
from exporter.part_names import HUGGING_FACE
from exporter.plan import ExportPlan
from exporter.wrappers import Checkpoint, Fitted
from runtimes._plugins import load_plugin
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError, ResnetExportError, TraceError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import MODES, Preprocess

STATISTICS_IMAGES = 8
RESIDUAL_SCALE = 0.1
PATCH_SHARE = 0.1
"""Of a filter's power. The convolutions behind the first one of a random ResNet-20 so answer real images 5.1 dB louder than white noise of their
inputs' power; a trained one's do by 5.8 dB, white filters by 0 dB."""


@dataclass(frozen=True)
class LoadedModel:
    """A module in evaluation mode, what the manifest says of it, and what of the checkpoint was left out, a sentence for each kind."""

    module: nn.Module
    facts: ModelFacts
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()


def load_model(plan: ExportPlan) -> LoadedModel:
    """The model that `plan` asks for.

    Raises:
        WeightsUnavailable: the default weights could not be fetched.
        BadInput: a checkpoint that cannot be read, does not fit, or holds values that are not finite; a factory that raises, or returns what
            cannot be exported; a model that does not answer such an image with logits.
        TraceError: a model that fails at an image of any size.
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
        return _from_file(source, plan)


def _from_file(source: Any, plan: ExportPlan) -> LoadedModel:
    path = Path(plan.weights)
    fitted: Fitted = source.load(plan.spec, Checkpoint(state_from_file(path), str(path), headless=plan.features is not None))
    config = config_beside(path) if fitted.layout is HUGGING_FACE else None
    if config is not None:
        check_form(config, plan.spec, path)
    loaded = _loaded(plan, fitted.module, WeightsFacts("file", sha256_of_file(path)), source.preprocess(plan.spec), None)
    loaded = replace(loaded, left_out=fitted.left_out)
    if config is None or config.labels is None or plan.labels is not None or plan.features:
        return loaded
    if len(config.labels) != loaded.facts.classes:
        count = f"{len(config.labels)} class names of config.json: {path.name} has {loaded.facts.classes} classes"
        return replace(loaded, left_out=(*fitted.left_out, count))
    return replace(loaded, labels=config.labels)


def _random(source: Any, plan: ExportPlan) -> LoadedModel:
    own = source.preprocess(plan.spec)
    channels = len(plan.mean) if plan.mean and len(plan.mean) > 1 else own.channels
    module: nn.Module = source.create(plan.spec, plan.classes or plan.spec.classes, channels)
    preprocess, _ = _shown(module, own, plan)  # refused before the statistics
    _make_random_behave(module, preprocess, plan.model)
    return _loaded(plan, module, WeightsFacts("random", sha256_of_state(module.state_dict())), own, None)


def _loaded(plan: ExportPlan, module: nn.Module, weights: WeightsFacts, own: Preprocess, labels: tuple[str, ...] | None) -> LoadedModel:
    preprocess, answer = _shown(module, own, plan)
    classes = 0 if plan.features else _classes(module, answer, plan)
    if plan.classes not in (None, classes):
        where = plan.weights if weights.kind == "file" else plan.model
        raise PlanError(f"--num-classes says {plan.classes}, but {where} has {classes} classes; leave the option out")
    if plan.labels is not None and not plan.labels.exists():
        raise BadInput(f"--labels: there is no file or folder {plan.labels}; give class names, one a line, or the folder that was trained on")
    if plan.labels is not None:
        labels = checked_labels(plan.labels, classes)
    facts = ModelFacts(plan.model, plan.spec.source, plan.spec.variant, classes, weights)
    return LoadedModel(module, facts, preprocess, labels)


def _shown(module: nn.Module, own: Preprocess, plan: ExportPlan) -> tuple[Preprocess, object]:
    """How pictures reach the model, and what it answers a black one with.

    The channels are those that the model takes: it is shown images of as many as --mean has values, as its own preprocessing
    has, of 3, of as many as its first convolution takes (which need not be the input's: a stem may fold space into channels,
    or add coordinates), and of 1. For --features the head may fail: they are taken before it.

    Raises:
        BadInput: it does not take an image of that size, and of another it does.
        TraceError: it takes none; the attempt that came farthest is told.
    """
    crop = plan.image_size or own.crop
    first = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), own.channels)
    given = [len(values) for values in (plan.mean, plan.std, own.mean) if values and len(values) > 1]
    attempts: list[Attempt] = []
    for channels in dict.fromkeys((*given, 3, first, 1)):
        attempts.append(attempt(module, (channels, *crop)))
        if attempts[-1].error is None:
            break
    best = max(attempts, key=lambda one: (one.error is None, one.depth))
    if best.error is not None and not plan.features:
        raise _does_not_take(module, best, plan)
    return _adjusted(own, plan, best.shape[0]), best.answer


def _does_not_take(module: nn.Module, failed: Attempt, plan: ExportPlan) -> ResnetExportError:
    assert failed.error is not None
    shape = "x".join(map(str, failed.shape))
    said = f"{plan.model} does not take an image of {shape}{failed.where}: {reason(failed.error)}"
    side = side_that_fits(module, failed.shape)
    if side is not None:
        return BadInput(f"{said}; choose another --image-size, {side} for one")
    if isinstance(failed.error, TypeError) and "argument" in str(failed.error):
        return TraceError(f"{said}; give a network whose forward, in evaluation mode, takes the image alone")
    return TraceError(f"{said}; no other --image-size helps: it must run, in evaluation mode, on torch.zeros(1, {', '.join(map(str, failed.shape))})")


def _classes(module: nn.Module, answer: object, plan: ExportPlan) -> int:
    """How many logits the model answers an image with; of an answer that holds more, it gives them alone from here on.

    Raises:
        BadInput: it answers with something else.
    """
    if isinstance(getattr(module, "fc", None), nn.Identity):
        raise BadInput(
            f"{plan.weights} is of a {plan.model} without a head, so there are no logits; give --features pool or stages for what is there"
        )
    logits = answer if isinstance(answer, Tensor) else logits_within(answer)
    if logits is None or logits.ndim != 2 or logits.shape[0] != 1 or not logits.shape[1] or logits.dtype != torch.float32:
        raise BadInput(
            f"expected {plan.model} to answer one image with logits of shape (1, classes), got {described(answer)}; "
            "return the logits alone, in float32"
        )
    if logits is not answer:
        module.register_forward_hook(lambda part, inputs, output: logits_within(output))
    return int(logits.shape[1])


def _adjusted(own: Preprocess, plan: ExportPlan, channels: int) -> Preprocess:
    """The model's own preprocessing, changed by --image-size, --mean and --std; one value stands for every channel."""

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


def _make_random_behave(module: nn.Module, preprocess: Preprocess, name: str) -> None:
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
        if isinstance(last, nn.BatchNorm2d) and last.affine:
            nn.init.constant_(last.weight, RESIDUAL_SCALE)
    source = built_in("train") if preprocess.channels in MODES else channelled(built_in("train"), preprocess.channels)
    inputs = torch.from_numpy(inputs_from_source(source, preprocess, STATISTICS_IMAGES))
    hooks = []
    module.eval()  # as a whole: in training mode a head may want labels, and dropout would shift the statistics
    for layer in module.modules():
        if isinstance(getattr(layer, "running_var", None), Tensor):
            layer.training = True
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # a cumulative average: after one batch, that batch's statistics
        elif isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_pre_hook(_take_in_patches))
    with layers_at_work(module) as inside:

        def told(error: BaseException) -> TraceError:
            return TraceError(f"{name} does not take a batch of {len(inputs)} images{place(inside, error)}: {reason(error)}; give --weights FILE")

        try:
            with others_code(told), as_exported(), torch.inference_mode():
                module(inputs)
        finally:
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
