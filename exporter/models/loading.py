"""Load a model with its weights: the default ones, random ones that behave like trained ones, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporter.models.checkpoints import sha256_of_state, state_from_file
from exporter.models.determinism import Attempt, describe, logits_within, side_that_fits, try_black_image
from exporter.models.failing_layer import reason
from exporter.models.find_network import Checkpoint
from exporter.models.hugging_face import check_config, config_beside
from exporter.models.labels import labels_for_classes
from exporter.models.loaded import LoadedModel
from exporter.models.part_names import HUGGING_FACE
from exporter.models.preprocessing import adjusted_preprocess
from exporter.models.random_start import make_random_behave
from exporter.models.registry import load_source
from exporter.models.request import ModelRequest
from exporter.models.sources import ModelSource
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError, ResnetExportError, TraceError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import Preprocess


def load_model(request: ModelRequest) -> LoadedModel:
    """Load the model that is asked for.

    Raises:
        WeightsUnavailable: the default weights could not be fetched.
        BadInput: a checkpoint that cannot be read, does not fit, or holds values that are not finite; a factory that
            raises, or returns what cannot be exported; a model whose answer to an image of this size is no logits.
        TraceError: a model that fails at images of every size.
        PlanError: --mean, --std, --channels-order, --resize or --num-classes do not fit the weights.
    """
    spec = request.spec
    source = load_source(spec)
    with _seed(request.seed):
        if request.weights == "random":
            return _random_model(source, request)
        if request.weights == "default":
            default = source.pretrained(spec)
            weights = WeightsFacts(default.kind, default.sha256)
            trial = _try_image(default.module, default.preprocess, request)
            return _assemble(request, default.module, weights, trial, default.labels)
        return _model_from_checkpoint(source, request)


def _model_from_checkpoint(source: ModelSource, request: ModelRequest) -> LoadedModel:
    path = Path(request.weights)
    checkpoint = Checkpoint(state_from_file(path), str(path), headless=request.features is not None)
    fitted = source.load(request.spec, checkpoint)
    config = config_beside(path) if fitted.layout is HUGGING_FACE else None
    if config is not None:
        check_config(config, request.spec, path)
    weights = WeightsFacts("file", sha256_of_file(path))
    trial = _try_image(fitted.module, source.preprocess(request.spec), request)
    loaded = _assemble(request, fitted.module, weights, trial, None)
    loaded = replace(loaded, left_out=fitted.left_out)
    if config is None or config.labels is None or request.labels is not None or request.features:
        return loaded
    if len(config.labels) != loaded.facts.classes:
        count = f"{len(config.labels)} class names of config.json: {path.name} has {loaded.facts.classes} classes"
        return replace(loaded, left_out=(*fitted.left_out, count))
    return replace(loaded, labels=config.labels)


def _random_model(source: ModelSource, request: ModelRequest) -> LoadedModel:
    own = source.preprocess(request.spec)
    channels = len(request.mean) if request.mean and len(request.mean) > 1 else own.channels
    module = source.create(request.spec, request.classes or request.spec.classes, channels)
    # A model that takes no such image is refused before its statistics are set.
    trial = _try_image(module, own, request)
    make_random_behave(module, trial.preprocess, request.model)
    weights = WeightsFacts("random", sha256_of_state(module.state_dict()))
    return _assemble(request, module, weights, trial, None)


def _assemble(
    request: ModelRequest, module: nn.Module, weights: WeightsFacts, trial: _Trial, labels: tuple[str, ...] | None
) -> LoadedModel:
    """Check a module against the request, and put its record together.

    Args:
        trial: of the module, with these weights or others.
        labels: the class names that come with the weights.
    """
    classes = 0 if request.features else _classes(module, trial.answer, request)
    if request.classes not in (None, classes):
        where = request.weights if weights.kind == "file" else request.model
        raise PlanError(
            f"--num-classes says {request.classes}, but {where} has {classes} classes; leave the option out"
        )
    if request.labels is not None and not request.labels.exists():
        raise BadInput(
            f"--labels: there is no file or folder {request.labels}; give class names, one a line, "
            "or the folder that was trained on"
        )
    if request.labels is not None:
        labels = labels_for_classes(request.labels, classes)
    facts = ModelFacts(request.model, request.spec.source, request.spec.variant, classes, weights)
    return LoadedModel(module=module, facts=facts, preprocess=trial.preprocess, labels=labels)


class _Trial(NamedTuple):
    """How images reach a model, and its answer to a black one."""

    preprocess: Preprocess
    answer: object


def _try_image(module: nn.Module, own: Preprocess, request: ModelRequest) -> _Trial:
    """Show a model a black image, to find out how many channels it takes and what it answers.

    `own` is the preprocessing that the model was made for, before what the request says of it.

    The numbers of channels to try are, in this order: the number of values of --mean, that of --std, that of the
    model's own preprocessing, 3, the input channels of its first convolution (which may have more: a stem may fold
    space into channels, or add coordinates), and 1. With --features the head may fail, since the features are taken
    before it.

    Raises:
        BadInput: it does not take an image of this size, but one of another size.
        TraceError: it takes no image; says how the attempt failed that came furthest.
    """
    crop = request.image_size or own.crop
    first = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), own.channels)
    given = [len(values) for values in (request.mean, request.std, own.mean) if values and len(values) > 1]
    attempts: list[Attempt] = []
    for channels in dict.fromkeys((*given, 3, first, 1)):
        attempts.append(try_black_image(module, (channels, *crop)))
        if attempts[-1].error is None:
            break
    best = max(attempts, key=lambda one: (one.error is None, one.depth))
    if best.error is not None and not request.features:
        raise _image_error(module, best, request)
    return _Trial(adjusted_preprocess(own, request, best.shape[0]), best.answer)


def _image_error(module: nn.Module, failed: Attempt, request: ModelRequest) -> ResnetExportError:
    """The error to raise for a failed attempt, with its remedy."""
    assert failed.error is not None
    shape = "x".join(map(str, failed.shape))
    what = f"{request.model} does not take an image of {shape}{failed.where}: {reason(failed.error)}"
    side = side_that_fits(module, failed.shape)
    if side is not None:
        return BadInput(f"{what}; choose another --image-size, {side} for one")
    if isinstance(failed.error, TypeError) and "argument" in str(failed.error):
        return TraceError(f"{what}; give a network whose forward, in evaluation mode, takes the image alone")
    example = f"torch.zeros(1, {', '.join(map(str, failed.shape))})"
    return TraceError(f"{what}; no other --image-size helps: it must run, in evaluation mode, on {example}")


def _classes(module: nn.Module, answer: object, request: ModelRequest) -> int:
    """The number of logits in a model's answer to an image.

    If the answer holds more than the logits, the module is hooked so that it returns them alone from here on.

    Raises:
        BadInput: there are no logits in it.
    """
    if isinstance(getattr(module, "fc", None), nn.Identity):
        raise BadInput(
            f"{request.weights} holds a {request.model} without a head, so there are no logits; "
            "give --features pool or stages for what is there"
        )
    logits = answer if isinstance(answer, Tensor) else logits_within(answer)
    if (
        logits is None
        or logits.ndim != 2
        or logits.shape[0] != 1
        or not logits.shape[1]
        or logits.dtype != torch.float32
    ):
        raise BadInput(
            f"expected {request.model} to answer one image with logits of shape (1, classes), got {describe(answer)}; "
            "return the logits alone, in float32"
        )
    if logits is not answer:
        module.register_forward_hook(lambda part, inputs, output: logits_within(output))
    return int(logits.shape[1])


@contextmanager
def _seed(seed: int) -> Iterator[None]:
    """Seed torch's random numbers for the time being; a factory may initialise its module with them, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
