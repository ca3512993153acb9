"""timm's relatives of ResNet, `timm:NAME[.tag]`, with timm's weights and their preprocessing."""

from __future__ import annotations

import difflib
import math
import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from timm.data import ImageNetInfo, resolve_data_config
from torch import Tensor, nn

from exporter.models.checkpoints import state_from_file
from exporter.models.failing_layer import foreign_code, kind_and_line
from exporter.models.find_network import Checkpoint, FittedModule, check_finite
from exporter.models.random_start import RESIDUAL_SCALE
from exporter.models.spec import ModelSpec, Pretrained
from exporter.models.state_names import fit_checkpoint, without_prefixes
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, PlanError, UnknownName, WeightsUnavailable
from runtimes.preprocess import Preprocess

PREFIX = "timm:"
NETWORK_TIMEOUT_SECONDS = 10.0
SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
IMAGENET_CLASSES = 1000
STARTING_BIAS = 2.0


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """Make timm's model with random weights that behave like trained ones."""
    module = _create(spec, num_classes=classes, in_chans=channels)
    _make_calm(module)
    return module


def load(spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
    """Make timm's model with a checkpoint's weights, which have timm's names."""
    bare = without_prefixes(checkpoint.state, checkpoint.where)
    config = _config(spec)
    head, stem = (bare.get(f"{_first(config.get(part))}.weight") for part in ("classifier", "first_conv"))
    classes = None if head is None else int(head.shape[0])
    channels = None if stem is None or stem.ndim != 4 else int(stem.shape[1])
    return fit_checkpoint(
        _create(spec, num_classes=classes, in_chans=channels), replace(checkpoint, state=bare), spec.name
    )


def pretrained(spec: ModelSpec) -> Pretrained:
    """Make the model with timm's weights of its tag, or of the first tag if it has none.

    They are taken from Hugging Face's cache, or downloaded into it.

    Raises:
        WeightsUnavailable: there are none, or they could not be fetched.
    """
    own = preprocess(spec)
    path = _weights_file(spec)
    state = state_from_file(path)
    check_finite(state, str(path))
    module = _create(spec, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    labels = (
        tuple(ImageNetInfo().label_descriptions()) if _config(spec).get("num_classes") == IMAGENET_CLASSES else None
    )
    return Pretrained(module, own, labels, "default", sha256_of_file(path))


def preprocess(spec: ModelSpec) -> Preprocess:
    """timm's own data configuration as a preprocessing.

    The shorter side is resized to the input size over `crop_pct`; both sides are if the crop mode is `squash`.

    Raises:
        PlanError: it has steps that a bundle cannot hold.
    """
    config = resolve_data_config({}, pretrained_cfg=_config(spec))
    _, height, width = config["input_size"]
    mode = config["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise PlanError(
            f"{spec.name} takes images of {height}x{width} with crop mode '{mode}', which a bundle cannot hold; "
            "choose another model"
        )
    short, long = (math.floor(size / config["crop_pct"]) for size in (height, width))
    resize = (short, long) if mode == "squash" else short
    return Preprocess(
        resize, (height, width), config["interpolation"], True, tuple(config["mean"]), tuple(config["std"])
    )


def _create(spec: ModelSpec, **options: Any) -> nn.Module:
    _check_name(spec)
    with foreign_code(
        lambda error: BadInput(f"timm cannot make {spec.name}: {kind_and_line(error)}; choose another model")
    ):
        module: nn.Module = timm.create_model(spec.name.removeprefix(PREFIX), **options)
        return module.eval()


def _check_name(spec: ModelSpec) -> None:
    """Check that timm has the model.

    Raises:
        UnknownName: it has no such model, or no such tag of it; lists the nearest.
    """
    name = spec.name.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise UnknownName("timm model", architecture, difflib.get_close_matches(architecture, known, n=3, cutoff=0.0))
    tagged = [one for one in timm.list_pretrained(f"{architecture}.*") if one.partition(".")[0] == architecture]
    if tag and name not in tagged:
        raise UnknownName("timm model", name, [architecture, *tagged])


def _config(spec: ModelSpec) -> dict[str, Any]:
    """timm's configuration of a model's weights: where they are, their preprocessing, names of first and last layer."""
    _check_name(spec)
    found = timm.get_pretrained_cfg(spec.name.removeprefix(PREFIX))
    return {} if found is None else dict(found.to_dict())


def _first(name: object) -> object:
    """The first of several stems or heads, which timm lists for some models."""
    return name[0] if isinstance(name, list | tuple) else name


def _is_whole(cached: Path) -> bool:
    """Is a file of Hugging Face's cache the one that was downloaded? The cache calls large files by their sha256, to
    which a name links. One that was damaged since is removed, and so downloaded again.

    Raises:
        WeightsUnavailable: it is damaged, and cannot be removed.
    """
    blob = cached.resolve()
    if SHA256.fullmatch(blob.name) is None or sha256_of_file(blob) == blob.name:
        return True
    try:
        blob.unlink()
    except OSError as error:
        raise WeightsUnavailable(f"{blob} is damaged ({error.strerror} on removing it); remove it") from error
    return False


def _weights_file(spec: ModelSpec) -> Path:
    config = _config(spec)
    repository = config.get("hf_hub_id")
    if not repository:
        where = (
            f"; fetch {config['url']} and give --weights FILE"
            if config.get("url")
            else "; give --weights random or FILE"
        )
        raise WeightsUnavailable(f"Hugging Face has no weights of {spec.name}{where}")
    names = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else WEIGHTS_FILES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(cached, str) and _is_whole(Path(cached)):
            return Path(cached)
    try:
        # huggingface_hub tries six times for each file before it gives up: a minute without a network.
        urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=NETWORK_TIMEOUT_SECONDS
        ).close()
        found = {entry for entry in huggingface_hub.list_repo_files(repository) if entry in names}
        return Path(huggingface_hub.hf_hub_download(repository, next(name for name in names if name in found)))
    except Exception as error:  # urllib's, huggingface_hub's and its HTTP client's kinds share no base
        reason = (str(getattr(error, "reason", error)).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsUnavailable(
            f"cannot fetch {constants.ENDPOINT}/{repository} ({reason}); "
            "without a network use --weights random, or fetch it elsewhere and give --weights FILE"
        ) from error


def _make_calm(module: nn.Module) -> None:
    """Make random weights behave more like trained ones, in place.

    Layers that timm starts at zero, the last of each residual branch, get a tenth of a usual start, since a branch of
    zeros proves nothing. Other batch norms start with a bias: a ReLU that cuts off half of its input costs 2 dB of
    signal-to-noise ratio, and the stems and shortcuts of timm's networks have many in a row (measured on a random
    ResNet-10-T in INT8: 24 dB of SQNR without the bias, 32 dB with it).
    """
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(layer, nn.BatchNorm2d):
            at_end = not torch.count_nonzero(weight)
            nn.init.constant_(*((weight, RESIDUAL_SCALE) if at_end else (layer.bias, STARTING_BIAS)))
        elif isinstance(layer, nn.Conv2d) and not torch.count_nonzero(weight):
            nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
            weight.data.mul_(RESIDUAL_SCALE)
