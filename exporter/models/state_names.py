"""Fit checkpoints to modules, whatever names their training scripts gave to a residual network's parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from exporter.models.find_network import (
    Checkpoint,
    FittedModule,
    FoundNetwork,
    apply_pruning_masks,
    check_finite,
    find_network,
)
from exporter.models.leftovers import counter_names, first_few, training_keys, without
from exporter.models.registry import DEPTHS, MODELS, PAD, find_model, load_source
from exporter.models.spec import Architecture, ModelSpec
from runtimes.errors import BadInput

Create = Callable[[ModelSpec, int | None, int | None], nn.Module]
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "resnet.")
"""What DataParallel, torch.compile and Lightning put before the names."""
NORM_EPSILON = 1e-5
OWN_NETWORK = "export the network that it belongs to as package.module:factory, with these --weights"


def resnet_from_state(create: Create, spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
    """Make a model with `create` and give it a checkpoint's weights.

    If the checkpoint has no head, the module's `fc` is an identity.

    Raises:
        BadInput: it does not fit; says which model of the table it belongs to, or what differs and what to do.
    """
    found = find_network(checkpoint)
    if found is None:
        raise BadInput(f"{checkpoint.where} {_not_a_resnet(spec, checkpoint.state)}; {_remedy([*checkpoint.state])}")
    named = fold_biases(found.tensors)
    if not found.unknown and named["conv1.weight"].ndim == 4:
        module = _empty_model(create, spec, named)
        if not differences(module, named):
            check_finite(named, checkpoint.where)
            return FittedModule(load_state(module, named), found.left_out, found.layout)
    raise BadInput(f"{checkpoint.where} {_misfit(create, spec, named, found)}")


def fit_checkpoint(module: nn.Module, checkpoint: Checkpoint, name: str) -> FittedModule:
    """Give any module a checkpoint's weights, which have the module's own names, perhaps behind a prefix.

    Args:
        name: what messages call the module.

    Raises:
        BadInput: they do not fit; says what differs.
    """
    own = module.state_dict()
    state = dict(checkpoint.state)
    if not any(key.endswith("_mask") for key in own):
        state = apply_pruning_masks(state, checkpoint.where)
    counters = [] if counter_names(own) else counter_names(state)
    state = without(state, counters)
    first = next(iter(own), "")
    prefixes = sorted({"", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))}, key=len)
    found = []
    for prefix in prefixes:
        losses = [key for key in training_keys(state, prefix) if key.removeprefix(prefix) not in own]
        bare = {key.removeprefix(prefix): value for key, value in state.items() if key not in losses}
        found.append(differences(module, bare))
        if not found[-1]:
            check_finite(bare, checkpoint.where)
            left_out = [
                f"{len(keys)} tensors of the checkpoint, counters, losses and metrics: {first_few(keys)}"
                for keys in [counters + losses]
                if keys
            ]
            return FittedModule(load_state(module, bare), tuple(left_out))
    raise BadInput(
        f"{checkpoint.where} does not fit {name}: {min(found, key=len)}; is it a checkpoint of another architecture?"
    )


def without_prefixes(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under their names without the prefixes of wrappers.

    Raises:
        BadInput: the checkpoint holds two networks that differ by prefix only.
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


def fold_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold biases of convolutions into the batch norms after them, exactly: the bias is subtracted from the mean.

    A shortcut that is a convolution without a batch norm (d2l.ai's) gets one that adds its bias and changes nothing
    else.
    """
    result = {_with_downsample_name(key, state): value for key, value in state.items()}
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
    """Say which tensors are missing, unexpected, of another shape or of another type; empty if all fit.

    Batch counters are ignored.
    """
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
    return "; ".join(f"{len(keys)} {what}: {first_few(keys)}" for what, keys in found.items() if keys)


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Replace a module's tensors by those of `state`; batch counters, which only training reads, become zero."""
    own = module.state_dict()
    values = {
        key: torch.zeros((), dtype=torch.long) if key.endswith("num_batches_tracked") else state[key] for key in own
    }
    module.load_state_dict(values, assign=True)
    return module


def spec_from_state(state: Mapping[str, Tensor]) -> ModelSpec | None:
    """Recognise a model by the names and shapes of its tensors; None if it is no ResNet.

    An architecture without a name gives the closest model of the table. `v1` and `v1.5` have the same tensors, and are
    not told apart.
    """
    architecture = _architecture_from_state(state)
    if architecture is None:
        return None
    same = (spec.name for spec in MODELS.values() if spec.architecture == architecture)
    name = next(same, None) or _pattern_name(architecture) or _nearest_name(architecture)
    padded = len(architecture.blocks) == 3 and "layer2.0.downsample.0.weight" not in state
    return find_model(name, PAD if padded and PAD in find_model(name).variants else None)


def _not_a_resnet(spec: ModelSpec, state: Mapping[str, Tensor]) -> str:
    got = first_few(sorted(state))
    return f"does not look like a ResNet checkpoint: expected the tensors of a {spec.name}, got {got}"


def _misfit(create: Create, spec: ModelSpec, state: Mapping[str, Tensor], found: FoundNetwork) -> str:
    """Say why a checkpoint does not fit `spec`, and what to do; the words follow the file's name."""
    near = spec_from_state(state)
    if near is None:
        return f"{_not_a_resnet(spec, state)}; {OWN_NETWORK}"
    if near.architecture != spec.architecture or PAD in (near.variant, spec.variant):
        create = load_source(near).create
    else:
        near = spec
    differs = differences(_empty_model(create, near, state), state)
    asked, choice = (f"{one.name} --shortcut {one.variant}" if one.variant == PAD else one.name for one in (spec, near))
    if not differs and asked != choice:
        return f"is a checkpoint of {choice}, not of {asked}; export {choice}"
    beside = f"{len(found.unknown)} unexpected: {first_few(found.unknown)}" if found.unknown else ""
    if asked != choice:
        differs = "; ".join(filter(None, (differs, beside)))
        return (
            f"does not fit {asked}: the closest known is {choice}, with {found.layout.name}, and it differs: "
            f"{differs}; {OWN_NETWORK}"
        )
    if not differs:
        return _surplus(asked, state, found)
    return (
        f"has the parts of a {asked}, and differs from it: {'; '.join(filter(None, (differs, beside)))}; "
        f"{_remedy([*found.unknown])}"
    )


def _surplus(asked: str, state: Mapping[str, Tensor], found: FoundNetwork) -> str:
    """Say what a checkpoint holds beyond all of a model's tensors, and what to do; follows the file's name."""
    names, count = first_few(found.unknown), len(found.unknown)
    linear = [key for key, value in found.unknown.items() if value.ndim == 2 and key.endswith("weight")]
    if "fc.weight" not in state and linear:
        return (
            f"has the body of a {asked}, and a head of more than one linear layer ({names}); {OWN_NETWORK}, "
            "or give --features pool or stages for what is before the head"
        )
    return f"has all of a {asked}, and {count} tensors that it has no place for: {names}; {_remedy([*found.unknown])}"


def _remedy(unknown: list[str]) -> str:
    if any("fake_quant" in key or "activation_post_process" in key for key in unknown):
        return (
            "it comes from quantization-aware training: save the float model's state_dict, and quantize it with --int8"
        )
    if any(re.search(r"parametrizations|weight_(g|v|u|orig)$", key) for key in unknown):
        return (
            "its weights are parametrized: remove that (torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm), save it again"
        )
    return OWN_NETWORK


def _empty_model(create: Create, spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Make a model with a checkpoint's numbers of classes and channels on the meta device.

    Values that will be replaced would cost seconds to initialise.
    """
    head, stem = state.get("fc.weight"), state["conv1.weight"]
    with torch.device("meta"):
        module = create(spec, None if head is None or head.ndim != 2 else head.shape[0], stem.shape[1])
    if head is None:
        module.fc = nn.Identity()
    return module


def _architecture_from_state(state: Mapping[str, Tensor]) -> Architecture | None:
    stem, second = state.get("conv1.weight"), state.get("layer1.0.conv2.weight")
    if stem is None or second is None or stem.ndim != 4 or second.ndim != 4:
        return None
    places = {tuple(map(int, re.findall(r"\d+", key)[:2])) for key in state if re.match(r"layer[1-4]\.\d+\.", key)}
    blocks = tuple(sum(stage == found for found, _ in places) for stage in range(1, max(places)[0] + 1))
    groups = second.shape[0] // second.shape[1]
    return Architecture(
        blocks, "layer1.0.conv3.weight" in state, groups, second.shape[1], "cifar" if stem.shape[2] == 3 else "imagenet"
    )


def _pattern_name(architecture: Architecture) -> str | None:
    """The name of an architecture that is not in the table but follows its pattern, such as `resnext50_16x8d`."""
    depth = next((depth for depth, known in DEPTHS.items() if known == (architecture.blocks, True)), None)
    if depth is None or not architecture.bottleneck or architecture.stem == "cifar":
        return None
    if architecture.groups == 1 and architecture.width % 64 == 0:
        return f"wide_resnet{depth}_{architecture.width // 64}"
    return f"resnext{depth}_{architecture.groups}x{architecture.width}d"


def _nearest_name(architecture: Architecture) -> str:
    """The name of the table's most similar model: first by its stages, then by kind, stem, width and blocks."""

    def distance(known: Architecture) -> tuple[int, ...]:
        return (
            abs(len(known.blocks) - len(architecture.blocks)),
            known.bottleneck != architecture.bottleneck,
            known.stem != architecture.stem,
            abs(known.groups - architecture.groups) + abs(known.width - architecture.width),
            sum(abs(one - other) for one, other in zip(known.blocks, architecture.blocks, strict=False)),
        )

    known = ((distance(spec.architecture), spec.name) for spec in MODELS.values() if spec.architecture)
    return min(known, key=lambda pair: pair[0])[1]


def _with_downsample_name(key: str, state: Mapping[str, Tensor]) -> str:
    """torchvision's name of d2l.ai's shortcut, a `conv3` in a block without a `bn3`; other names as they are."""
    match = re.fullmatch(r"(layer\d\.\d+\.)conv3\.(weight|bias)", key)
    return f"{match[1]}downsample.0.{match[2]}" if match and f"{match[1]}bn3.weight" not in state else key
