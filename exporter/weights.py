"""A model with its weights: the default ones, random ones that behave like trained ones, or a checkpoint's."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calibration.data import ImageSource, built_in
from exporter import models
from exporter.models import ModelSpec, Pretrained
from exporter.plan import ExportPlan
from runtimes._plugins import load_plugin
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError
from runtimes.manifest import ModelFacts, WeightsFacts
from runtimes.preprocess import Preprocess

RANDOM_CLASSES = 1000
STATISTICS_IMAGES = 8
RESIDUAL_SCALE = 0.1
WRAPPERS = ("state_dict", "model")
SHOWN_KEYS = 4


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
        BadInput: a checkpoint that cannot be read, does not fit, or holds values that are not finite.
        PlanError: --mean, --std or --num-classes do not fit the weights.
    """
    spec = plan.spec
    source: Any = load_plugin(models, spec.source, kind="model source", remedy="pip install 'resnet-export[export]'")
    own = source.preprocess(spec)
    if plan.weights == "random":
        preprocess = _adjusted(own, plan, channels=len(plan.mean) if plan.mean and len(plan.mean) > 1 else own.channels)
        classes = plan.classes or (RANDOM_CLASSES if spec.source == "torchvision" else 10)
        module = _random_module(source, spec, classes, preprocess, plan.seed)
        return _loaded(plan, module, WeightsFacts("random", _sha256_of_state(module.state_dict())), preprocess, None)
    if plan.weights == "default":
        weights: Pretrained = source.pretrained(spec)
        module = _module_from_state(source, spec, weights.state, where=f"the {weights.kind} weights")
        return _loaded(plan, module, WeightsFacts(weights.kind, weights.sha256), _adjusted(weights.preprocess, plan), weights.labels)
    path = Path(plan.weights)
    state = state_from_file(path)
    module = _module_from_state(source, spec, state, where=str(path))
    if plan.classes not in (None, state["fc.weight"].shape[0]):
        raise PlanError(f"--num-classes says {plan.classes}, but {path} has {state['fc.weight'].shape[0]} classes; leave the option out")
    preprocess = _adjusted(own, plan, channels=state["conv1.weight"].shape[1])
    return _loaded(plan, module, WeightsFacts("file", sha256_of_file(path)), preprocess, None)


def _loaded(plan: ExportPlan, module: nn.Module, weights: WeightsFacts, preprocess: Preprocess, labels: tuple[str, ...] | None) -> LoadedModel:
    classes = int(module.get_parameter("fc.weight").shape[0])
    if plan.labels is not None:
        labels = _labels_from_file(plan.labels)
        if len(labels) != classes:
            raise BadInput(f"{plan.labels}: expected {classes} labels, one a line, got {len(labels)}")
    facts = ModelFacts(plan.model, plan.spec.source, plan.spec.variant, classes, weights)
    return LoadedModel(module.eval(), facts, preprocess, labels)


def _labels_from_file(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the labels in {path}: {error}; give a UTF-8 text file with a class name a line") from error


def _adjusted(own: Preprocess, plan: ExportPlan, *, channels: int | None = None) -> Preprocess:
    """The model's own preprocessing, changed by --image-size, --mean and --std; one value stands for every channel."""
    channels = channels or own.channels

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


def _random_module(source: Any, spec: ModelSpec, classes: int, preprocess: Preprocess, seed: int) -> nn.Module:
    """Seeded random weights with the activations of a trained network.

    Plain random weights make logits of 1e8 at ResNet-152's depth, and a network so chaotic that rounding changes the answer. So the
    last batch norm of each residual branch gets the weight 0.1 (its usual start is 0; Goyal et al. 2017, arXiv 1706.02677,
    section 5.1), and batch-norm statistics are those of real images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = source.create(spec, classes, preprocess.channels)
    for block in module.modules():
        last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if isinstance(last, nn.BatchNorm2d):
            nn.init.constant_(last.weight, RESIDUAL_SCALE)
    inputs = torch.from_numpy(inputs_from_source(built_in("train"), preprocess, STATISTICS_IMAGES))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None  # a cumulative average: after one batch, that batch's statistics
    with torch.inference_mode():
        module.train()(inputs)
    return module.eval()


def inputs_from_source(source: ImageSource, preprocess: Preprocess, count: int) -> NDArray[np.float32]:
    """The first `count` pictures as the model's input, float32 (count, channels, height, width).

    A model with a number of channels that no picture has (neither 1 nor 3) gets the grey picture in each.
    """
    images = [source.image(place) for place in range(min(count, source.count))]
    if preprocess.channels in (1, 3):
        return preprocess.batch(images)
    grey = replace(preprocess, mean=(0.0,), std=(1.0,)).batch(images)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return np.asarray((grey - mean) / std, np.float32)


def state_from_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, float tensors as FP32, keys without a `module.` prefix.

    Reads .safetensors, and .pt and .pth files with nothing but tensors and plain containers in them: `torch.load` with
    `weights_only=True` executes nothing.

    Raises:
        BadInput: missing, empty, truncated, not a checkpoint, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise BadInput(f"--weights: {path} is not a file; give default, random or a checkpoint (.safetensors, .pt, .pth)")
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else _tensors_from_pickle(path)
    except pickle.UnpicklingError as error:
        # Both a malicious pickle and a file of junk end here; neither was executed.
        raise BadInput(
            f"{path} is not a checkpoint of plain tensors (nothing in it was run); save it with torch.save(model.state_dict(), ...)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} cannot be read as a checkpoint: {reason}; is it complete?") from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise BadInput(f"{path}: expected a state dict, bare or under {' or '.join(WRAPPERS)}, got {type(loaded).__name__} without tensors")
    state = {str(key).removeprefix("module."): value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{path}: '{key}' holds NaN or infinite values; the training run diverged, take an earlier checkpoint")
    return state


def _tensors_from_pickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocols of checkpoints that are then read, or refused below
        return torch.load(path, map_location="cpu", weights_only=True)


def _module_from_state(source: Any, spec: ModelSpec, state: Mapping[str, Tensor], *, where: str) -> nn.Module:
    """The model with these weights; the numbers of classes and channels are the weights' own."""
    head, stem = state.get("fc.weight"), state.get("conv1.weight")
    if head is None or stem is None or head.ndim != 2 or stem.ndim != 4:
        raise BadInput(f"{where}: expected a {spec.name} with 'conv1.weight' and 'fc.weight', got keys {_some(sorted(state))}")
    with torch.device("meta"):  # shapes only: initialising weights that are replaced costs seconds
        module: nn.Module = source.create(spec, head.shape[0], stem.shape[1])
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [(len(keys), what, keys) for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape")) if keys]
    if problems:
        described = "; ".join(f"{count} {what}: {_some(keys)}" for count, what, keys in problems)
        raise BadInput(f"{where} does not fit {spec.name}: {described}; is it a checkpoint of another architecture?")
    tracked = {key: torch.zeros((), dtype=torch.long) for key in module.state_dict() if key.endswith("num_batches_tracked")}
    module.load_state_dict({**tracked, **{key: state[key] for key in wanted}}, assign=True)
    return module


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")


def _sha256_of_state(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].numpy().tobytes())
    return digest.hexdigest()
