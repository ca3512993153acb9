"""Checkpoints of residual networks in whatever names their training scripts gave the parts, fitted to torchvision's
modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from exporter.models.registry import DEPTHS, MODELS, PAD, find_model, load_source
from exporter.models.spec import ModelSpec, Shape
from exporter.models.wrappers import (
    COUNTERS,
    Checkpoint,
    Fitted,
    Found,
    check_finite,
    network_of,
    pruned,
    some,
    training_only,
    without_counters,
)
from runtimes.errors import BadInput

Create = Callable[[ModelSpec, int | None, int | None], nn.Module]
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "resnet.")
"""What DataParallel, torch.compile and Lightning modules put before the names."""
NORM_EPSILON = 1e-5
OWN_NETWORK = "export the network that it is of as package.module:factory, with these --weights"


def resnet_from_state(create: Create, spec: ModelSpec, checkpoint: Checkpoint) -> Fitted:
    """The model that `create` makes, with a checkpoint's weights; without a head in the checkpoint, `fc` passes on what
    it is given.

    Raises:
        BadInput: it does not fit; says which registered model it is of, or what differs and what to do.
    """
    found = network_of(checkpoint)
    if found is None:
        raise BadInput(
            f"{checkpoint.where} is of no ResNet that is known: expected the tensors of a {spec.name}, "
            f"got {some(sorted(checkpoint.state))}; "
            f"{_remedy([*checkpoint.state])}"
        )
    named = folded(found.tensors)
    if not found.unknown and named["conv1.weight"].ndim == 4:
        module = _empty(create, spec, named)
        if not differences(module, named):
            check_finite(named, checkpoint.where)
            return Fitted(loaded(module, named), found.left_out, found.layout)
    raise BadInput(f"{checkpoint.where} {_misfit(create, spec, named, found)}")


def fitted(module: nn.Module, checkpoint: Checkpoint, name: str) -> Fitted:
    """A module of anybody's making with a checkpoint's weights under its own names, bare or behind a prefix.

    Raises:
        BadInput: they do not fit; says what differs.
    """
    own = module.state_dict()
    state = dict(checkpoint.state)
    if not any(key.endswith("_mask") for key in own):
        state = pruned(state, checkpoint.where)
    state, counters = (state, []) if any(key.rpartition(".")[2] in COUNTERS for key in own) else without_counters(state)
    first = next(iter(own), "")
    prefixes = sorted({"", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))}, key=len)
    found = []
    for prefix in prefixes:
        losses = [key for key in training_only(state, prefix) if key.removeprefix(prefix) not in own]
        bare = {key.removeprefix(prefix): value for key, value in state.items() if key not in losses}
        found.append(differences(module, bare))
        if not found[-1]:
            check_finite(bare, checkpoint.where)
            left_out = [
                f"{len(keys)} tensors of the checkpoint, counters, losses and metrics: {some(keys)}"
                for keys in [counters + losses]
                if keys
            ]
            return Fitted(loaded(module, bare), tuple(left_out))
    raise BadInput(
        f"{checkpoint.where} does not fit {name}: {min(found, key=len)}; is it a checkpoint of another architecture?"
    )


def stripped(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers.

    Raises:
        BadInput: the checkpoint holds two networks, told apart by prefix alone.
    """
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(rf"^({'|'.join(map(re.escape, PREFIXES))})+", "", key)
        if name in bare:
            raise BadInput(
                f"{where} holds '{name}' twice, behind different prefixes, one of them in '{key}'; "
                "save the one network to export"
            )
        bare[name] = value
    return bare


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of convolutions taken into the batch norm behind them, exactly: its mean is less by the bias.

    A shortcut that is a convolution alone (d2l.ai's third one) gets a batch norm that adds its bias and changes nothing
    else.
    """
    result = {_shortcut(key, state): value for key, value in state.items()}
    for key in [key for key in result if key.endswith("downsample.0.weight")]:
        block, channels = key.removesuffix("downsample.0.weight"), result[key].shape[0]
        if f"{block}downsample.1.weight" not in result:
            zeros, ones = torch.zeros(channels), torch.ones(channels)
            bias = result.pop(f"{block}downsample.0.bias", zeros)
            norm = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - NORM_EPSILON}
            result |= {f"{block}downsample.1.{name}": value for name, value in norm.items()}
    for key in [key for key in result if re.search(r"(conv\d|downsample\.0)\.bias$", key)]:
        norm_mean = (
            f"{key.removesuffix('.bias').replace('conv', 'bn').replace('downsample.0', 'downsample.1')}.running_mean"
        )
        if norm_mean in result:
            result[norm_mean] = result[norm_mean] - result.pop(key)
    if "fc.weight" in result:
        result.setdefault("fc.bias", torch.zeros(result["fc.weight"].shape[0]))
    return result


def differences(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected, of another shape or no floats; empty where all fits. Batch counters do not count."""
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    both = [(key, value, state[key]) for key, value in wanted.items() if key in state]
    reshaped = [
        f"{key} {tuple(given.shape)} instead of {tuple(value.shape)}"
        for key, value, given in both
        if given.shape != value.shape
    ]
    retyped = [
        f"{key} {given.dtype} instead of {value.dtype}"
        for key, value, given in both
        if given.is_floating_point() != value.is_floating_point()
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped, "of another type": retyped}
    return "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in found.items() if keys)


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with the tensors of `state` in place of its own; batch counters, which only training reads, at zero."""
    own = module.state_dict()
    values = {
        key: torch.zeros((), dtype=torch.long) if key.endswith("num_batches_tracked") else state[key] for key in own
    }
    module.load_state_dict(values, assign=True)
    return module


def spec_from_state(state: Mapping[str, Tensor]) -> ModelSpec | None:
    """The model that names and shapes of tensors tell; the closest registered one for a shape that has no name, None
    for no ResNet.

    Where the strides are cannot be told from them: `v1` and `v1.5` have the same tensors.
    """
    shape = _shape(state)
    if shape is None:
        return None
    name = next((spec.name for spec in MODELS.values() if spec.shape == shape), None) or _pattern_name(shape)
    if name is None:
        name = min((spec for spec in MODELS.values() if spec.shape), key=lambda spec: _distance(spec.shape, shape)).name
    padded = len(shape.blocks) == 3 and "layer2.0.downsample.0.weight" not in state
    return find_model(name, PAD if padded and PAD in find_model(name).variants else None)


def _misfit(create: Create, spec: ModelSpec, state: Mapping[str, Tensor], found: Found) -> str:
    """Why a checkpoint is not of `spec`, and what to do; goes behind the file's name."""
    near = spec_from_state(state)
    if near is None:
        return (
            f"is of no ResNet that is known: expected the tensors of a {spec.name}, got {some(sorted(state))}; "
            f"{OWN_NETWORK}"
        )
    if near.shape != spec.shape or PAD in (near.variant, spec.variant):
        create = load_source(near).create
    else:
        near = spec
    differs = differences(_empty(create, near, state), state)
    asked, choice = (f"{one.name} --shortcut {one.variant}" if one.variant == PAD else one.name for one in (spec, near))
    if not differs and asked != choice:
        return f"is a checkpoint of {choice}, not of {asked}; export {choice}"
    beside = f"{len(found.unknown)} unexpected: {some(found.unknown)}" if found.unknown else ""
    if asked != choice:
        differs = "; ".join(filter(None, (differs, beside)))
        return (
            f"does not fit {asked}: the closest known is {choice}, with {found.layout.name}, and it differs: "
            f"{differs}; {OWN_NETWORK}"
        )
    if not differs:
        return f"{_beside(asked, state, found)}"
    return (
        f"has the parts of a {asked}, and differs from it: {'; '.join(filter(None, (differs, beside)))}; "
        f"{_remedy([*found.unknown])}"
    )


def _beside(asked: str, state: Mapping[str, Tensor], found: Found) -> str:
    """What is said where all of a model is there, and more."""
    names, count = some(found.unknown), len(found.unknown)
    linear = [key for key, value in found.unknown.items() if value.ndim == 2 and key.endswith("weight")]
    if "fc.weight" not in state and linear:
        return (
            f"has the body of a {asked}, and a head of more than one linear layer ({names}); {OWN_NETWORK}, "
            "or give --features pool or stages for what is before the head"
        )
    return f"has all of a {asked}, and {count} tensors that it has no place for: {names}; {_remedy([*found.unknown])}"


def _remedy(unknown: list[str]) -> str:
    if any("fake_quant" in key or "activation_post_process" in key for key in unknown):
        return "it is of quantization-aware training: save the float model's state_dict, and quantize it with --int8"
    if any(re.search(r"parametrizations|weight_(g|v|u|orig)$", key) for key in unknown):
        return (
            "its weights are parametrized: remove that (torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm), save it again"
        )
    return OWN_NETWORK


def _empty(create: Create, spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with a checkpoint's numbers of classes and channels, and no values yet: initialising what is replaced
    costs seconds."""
    head, stem = state.get("fc.weight"), state["conv1.weight"]
    with torch.device("meta"):
        module = create(spec, None if head is None or head.ndim != 2 else head.shape[0], stem.shape[1])
    if head is None:
        module.fc = nn.Identity()
    return module


def _shape(state: Mapping[str, Tensor]) -> Shape | None:
    stem, second = state.get("conv1.weight"), state.get("layer1.0.conv2.weight")
    if stem is None or second is None or stem.ndim != 4 or second.ndim != 4:
        return None
    places = {tuple(map(int, re.findall(r"\d+", key)[:2])) for key in state if re.match(r"layer[1-4]\.\d+\.", key)}
    blocks = tuple(sum(stage == found for found, _ in places) for stage in range(1, max(places)[0] + 1))
    groups = second.shape[0] // second.shape[1]
    return Shape(
        blocks, "layer1.0.conv3.weight" in state, groups, second.shape[1], "cifar" if stem.shape[2] == 3 else "imagenet"
    )


def _pattern_name(shape: Shape) -> str | None:
    """`resnext50_16x8d`, `wide_resnet101_4`: shapes with a name that are not registered."""
    depth = next((depth for depth, known in DEPTHS.items() if known == (shape.blocks, True)), None)
    if depth is None or not shape.bottleneck or shape.stem == "cifar":
        return None
    if shape.groups == 1 and shape.width % 64 == 0:
        return f"wide_resnet{depth}_{shape.width // 64}"
    return f"resnext{depth}_{shape.groups}x{shape.width}d"


def _distance(known: Shape | None, shape: Shape) -> tuple[int, ...]:
    assert known is not None
    stages = abs(len(known.blocks) - len(shape.blocks))
    blocks = sum(abs(one - other) for one, other in zip(known.blocks, shape.blocks, strict=False))
    return (
        stages,
        known.bottleneck != shape.bottleneck,
        known.stem != shape.stem,
        abs(known.groups - shape.groups) + abs(known.width - shape.width),
        blocks,
    )


def _shortcut(key: str, state: Mapping[str, Tensor]) -> str:
    """d2l.ai calls the shortcut's convolution `conv3`, and has no third batch norm."""
    match = re.fullmatch(r"(layer\d\.\d+\.)conv3\.(weight|bias)", key)
    return f"{match[1]}downsample.0.{match[2]}" if match and f"{match[1]}bn3.weight" not in state else key
