"""A model with its weights: the default ones, random ones that behave like trained ones, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from exporter.models.checkpoints import sha256_of_state, state_from_file
from exporter.models.determinism import Attempt, attempt, described, logits_within, side_that_fits
from exporter.models.failing_layer import reason
from exporter.models.hugging_face import check_form, config_beside
from exporter.models.labels import checked_labels
from exporter.models.loaded import LoadedModel
from exporter.models.part_names import HUGGING_FACE
from exporter.models.random_start import make_random_behave
from exporter.models.registry import load_source
from exporter.models.request import ModelRequest
from exporter.models.sources import ModelSource
from exporter.models.wrappers import Checkpoint
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError, ResnetExportError, TraceError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import Preprocess


def load_model(request: ModelRequest) -> LoadedModel:
    """The model that `request` asks for.

    Raises:
        WeightsUnavailable: the default weights could not be fetched.
        BadInput: a checkpoint that cannot be read, does not fit, or holds values that are not finite; a factory that
            raises, or returns what cannot be exported; a model that does not answer such an image with logits.
        TraceError: a model that fails at an image of any size.
        PlanError: --mean, --std or --num-classes do not fit the weights.
    """
    spec = request.spec
    source = load_source(spec)
    with _seeded(request.seed):
        if request.weights == "random":
            return _random(source, request)
        if request.weights == "default":
            weights = source.pretrained(spec)
            return _loaded(
                request, weights.module, WeightsFacts(weights.kind, weights.sha256), weights.preprocess, weights.labels
            )
        return _from_file(source, request)


def _from_file(source: ModelSource, request: ModelRequest) -> LoadedModel:
    path = Path(request.weights)
    fitted = source.load(
        request.spec, Checkpoint(state_from_file(path), str(path), headless=request.features is not None)
    )
    config = config_beside(path) if fitted.layout is HUGGING_FACE else None
    if config is not None:
        check_form(config, request.spec, path)
    loaded = _loaded(
        request, fitted.module, WeightsFacts("file", sha256_of_file(path)), source.preprocess(request.spec), None
    )
    loaded = replace(loaded, left_out=fitted.left_out)
    if config is None or config.labels is None or request.labels is not None or request.features:
        return loaded
    if len(config.labels) != loaded.facts.classes:
        count = f"{len(config.labels)} class names of config.json: {path.name} has {loaded.facts.classes} classes"
        return replace(loaded, left_out=(*fitted.left_out, count))
    return replace(loaded, labels=config.labels)


def _random(source: ModelSource, request: ModelRequest) -> LoadedModel:
    own = source.preprocess(request.spec)
    channels = len(request.mean) if request.mean and len(request.mean) > 1 else own.channels
    module = source.create(request.spec, request.classes or request.spec.classes, channels)
    preprocess, _ = _shown(module, own, request)  # refused before the statistics
    make_random_behave(module, preprocess, request.model)
    return _loaded(request, module, WeightsFacts("random", sha256_of_state(module.state_dict())), own, None)


def _loaded(
    request: ModelRequest, module: nn.Module, weights: WeightsFacts, own: Preprocess, labels: tuple[str, ...] | None
) -> LoadedModel:
    preprocess, answer = _shown(module, own, request)
    classes = 0 if request.features else _classes(module, answer, request)
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
        labels = checked_labels(request.labels, classes)
    facts = ModelFacts(request.model, request.spec.source, request.spec.variant, classes, weights)
    return LoadedModel(module, facts, preprocess, labels)


def _shown(module: nn.Module, own: Preprocess, request: ModelRequest) -> tuple[Preprocess, object]:
    """How pictures reach the model, and what it answers a black one with.

    The channels are those that the model takes: it is shown images of as many as --mean has values, as its own
    preprocessing has, of 3, of as many as its first convolution takes (which need not be the input's: a stem may fold
    space into channels, or add coordinates), and of 1. For --features the head may fail: they are taken before it.

    Raises:
        BadInput: it does not take an image of that size, and of another it does.
        TraceError: it takes none; the attempt that came farthest is told.
    """
    crop = request.image_size or own.crop
    first = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), own.channels)
    given = [len(values) for values in (request.mean, request.std, own.mean) if values and len(values) > 1]
    attempts: list[Attempt] = []
    for channels in dict.fromkeys((*given, 3, first, 1)):
        attempts.append(attempt(module, (channels, *crop)))
        if attempts[-1].error is None:
            break
    best = max(attempts, key=lambda one: (one.error is None, one.depth))
    if best.error is not None and not request.features:
        raise _does_not_take(module, best, request)
    return _adjusted(own, request, best.shape[0]), best.answer


def _does_not_take(module: nn.Module, failed: Attempt, request: ModelRequest) -> ResnetExportError:
    assert failed.error is not None
    shape = "x".join(map(str, failed.shape))
    said = f"{request.model} does not take an image of {shape}{failed.where}: {reason(failed.error)}"
    side = side_that_fits(module, failed.shape)
    if side is not None:
        return BadInput(f"{said}; choose another --image-size, {side} for one")
    if isinstance(failed.error, TypeError) and "argument" in str(failed.error):
        return TraceError(f"{said}; give a network whose forward, in evaluation mode, takes the image alone")
    return TraceError(
        f"{said}; no other --image-size helps: it must run, in evaluation mode, on torch.zeros(1, "
        f"{', '.join(map(str, failed.shape))})"
    )


def _classes(module: nn.Module, answer: object, request: ModelRequest) -> int:
    """How many logits the model answers an image with; of an answer that holds more, it gives them alone from here on.

    Raises:
        BadInput: it answers with something else.
    """
    if isinstance(getattr(module, "fc", None), nn.Identity):
        raise BadInput(
            f"{request.weights} is of a {request.model} without a head, so there are no logits; "
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
            f"expected {request.model} to answer one image with logits of shape (1, classes), got {described(answer)}; "
            "return the logits alone, in float32"
        )
    if logits is not answer:
        module.register_forward_hook(lambda part, inputs, output: logits_within(output))
    return int(logits.shape[1])


def _adjusted(own: Preprocess, request: ModelRequest, channels: int) -> Preprocess:
    """The model's own preprocessing, changed by --image-size, --mean and --std; one value stands for every channel."""

    def values(given: tuple[float, ...] | None, default: tuple[float, ...], option: str) -> tuple[float, ...]:
        chosen = given or default
        if len(chosen) == channels:
            return chosen
        if len(chosen) == 1:
            return chosen * channels
        if given is None:
            return (sum(default) / len(default),) * channels
        raise PlanError(
            f"expected {option} with 1 or {channels} values, got {len(given)}; the model has {channels} input channels"
        )

    changed = replace(own, mean=values(request.mean, own.mean, "--mean"), std=values(request.std, own.std, "--std"))
    if request.image_size is None:
        return changed
    # The shorter side keeps its ratio to the crop, as when the model was evaluated.
    ratio = own.resize / min(own.crop) if isinstance(own.resize, int) else 1.0
    square = request.image_size[0] == request.image_size[1]
    resize = round(request.image_size[0] * ratio) if square else request.image_size
    return replace(changed, resize=resize, crop=request.image_size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from `seed` on; a factory may initialise its module with them, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
