"""Checkpoints of residual networks in whatever names their training scripts gave the parts, fitted to torchvision's modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter import models
from exporter.models import DEPTHS, MODELS, PAD, ModelSpec, Shape, find_model
from runtimes._plugins import load_plugin
from runtimes.errors import BadInput

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "resnet.")
"""What DataParallel, torch.compile and Lightning modules put before the names."""
COUNTER = "n_averaged"
"""torch.optim.swa_utils.AveragedModel counts in it."""
SHOWN_KEYS = 4
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Layout:
    """A way of naming the parts: patterns of a name's beginning, and what torchvision calls it."""

    name: str
    rules: tuple[tuple[str, str], ...]


LAYOUTS = (
    Layout(
        "torchvision's or a tutorial's names",
        (
            (r"(conv|conv1\.0|stem\.0)\.", "conv1."),
            (r"(bn|conv1\.1|stem\.1)\.", "bn1."),
            (r"(fc|linear|classifier|head)(\.\d+)?\.(?=weight|bias)", "fc."),
            *((rf"(conv{stage + 1}_x|stage{stage}|layers\.{stage - 1})\.", f"layer{stage}.") for stage in range(1, 5)),
        ),
    ),
    Layout(
        "d2l.ai's names",
        (
            (r"0\.0\.", "conv1."),
            (r"0\.1\.", "bn1."),
            *((rf"({stage}|b{stage + 1})\.(?=\d+\.)", f"layer{stage}.") for stage in range(1, 5)),
            (r"(7|last\.2)\.", "fc."),
        ),
    ),
    Layout(
        "nn.Sequential's numbers",
        (
            (r"0\.", "conv1."),
            (r"1\.", "bn1."),
            *((rf"({stage + 3}|resnet_block{stage})\.(?=\d+\.)", f"layer{stage}.") for stage in range(1, 5)),
            (r"(9|10|fc\.\d+)\.", "fc."),
        ),
    ),
)
BLOCK_RULES = (
    (r"\.shortcut\.", ".downsample."),
    (r"\.downsample\.(weight|bias)$", r".downsample.0.\1"),
    *((rf"\.residual_function\.{3 * place}\.", f".conv{place + 1}.") for place in range(3)),
    *((rf"\.residual_function\.{3 * place + 1}\.", f".bn{place + 1}.") for place in range(3)),
)
KNOWN = re.compile(
    r"((conv1|bn1|fc)|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def resnet_from_state(
    create: Callable[[ModelSpec, int | None, int | None], nn.Module], spec: ModelSpec, state: Mapping[str, Tensor], where: str
) -> nn.Module:
    """The model that `create` makes, with a checkpoint's weights; without a head in the checkpoint, `fc` passes on what it is given.

    Raises:
        BadInput: it does not fit; says which registered model it is of, or the closest one and what differs.
    """
    layout, named = renamed(state, where)
    named = folded(named)
    stem, head = named.get("conv1.weight"), named.get("fc.weight")
    if stem is not None and stem.ndim == 4 and (head is None or head.ndim == 2):
        module = _empty(create, spec, named)
        if not differences(module, named):
            return loaded(module, named)
    raise BadInput(f"{where} {_misfit(spec, named, layout)}")


def fitted(module: nn.Module, state: Mapping[str, Tensor], where: str, name: str) -> nn.Module:
    """A module of anybody's making with a checkpoint's weights under its own names, bare or behind a prefix.

    Raises:
        BadInput: they do not fit; says what differs.
    """
    first = next(iter(module.state_dict()), "")
    prefixes = sorted({"", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))}, key=len)
    found = []
    for prefix in prefixes:
        bare = {key.removeprefix(prefix): value for key, value in state.items() if key != COUNTER}
        found.append(differences(module, bare))
        if not found[-1]:
            return loaded(module, bare)
    raise BadInput(f"{where} does not fit {name}: {min(found, key=len)}; is it a checkpoint of another architecture?")


def stripped(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers.

    Raises:
        BadInput: the checkpoint holds two networks, told apart by prefix alone.
    """
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(rf"^({'|'.join(map(re.escape, PREFIXES))})+", "", key)
        if name in bare:
            raise BadInput(f"{where} holds '{name}' twice, behind different prefixes, one of them in '{key}'; save the one network to export")
        bare[name] = value
    bare.pop(COUNTER, None)
    return bare


def renamed(state: Mapping[str, Tensor], where: str) -> tuple[Layout, dict[str, Tensor]]:
    """The layout that knows most of the names, and the tensors under torchvision's; names it does not know stay."""
    bare = stripped(state, where)
    candidates = []
    for layout in LAYOUTS:
        names = {key: _renamed(key, layout) for key in bare}
        times = Counter(names.values())  # a head of two layers would become one
        candidates.append((layout, {names[key] if times[names[key]] == 1 else key: value for key, value in bare.items()}))
    return max(candidates, key=lambda candidate: sum(KNOWN.fullmatch(key) is not None for key in candidate[1]))


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of convolutions taken into the batch norm behind them, exactly: its mean is less by the bias.

    A shortcut that is a convolution alone (d2l.ai's third one) gets a batch norm that adds its bias and changes nothing else.
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
        norm_mean = f"{key.removesuffix('.bias').replace('conv', 'bn').replace('downsample.0', 'downsample.1')}.running_mean"
        if norm_mean in result:
            result[norm_mean] = result[norm_mean] - result.pop(key)
    if "fc.weight" in result:
        result.setdefault("fc.bias", torch.zeros(result["fc.weight"].shape[0]))
    return result


def differences(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape; empty where all fits. Batch counters do not count."""
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    found = [(keys, what) for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape")) if keys]
    return "; ".join(f"{len(keys)} {what}: {_some(keys)}" for keys, what in found)


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with the tensors of `state` in place of its own; batch counters, which only training reads, at zero."""
    own = module.state_dict()
    values = {key: torch.zeros((), dtype=torch.long) if key.endswith("num_batches_tracked") else state[key] for key in own}
    module.load_state_dict(values, assign=True)
    return module


def spec_from_state(state: Mapping[str, Tensor]) -> ModelSpec | None:
    """The model that names and shapes of tensors tell; the closest registered one for a shape that has no name, None for no ResNet.

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


def _misfit(spec: ModelSpec, state: Mapping[str, Tensor], layout: Layout) -> str:
    """Why a checkpoint is not of `spec`, behind the file's name."""
    near = spec_from_state(state)
    if near is None:
        return f"is of no ResNet that is known: expected the tensors of a {spec.name}, got {_some(sorted(state))}"
    source: Any = load_plugin(models, near.source, kind="model source", remedy="pip install 'resnet-export[export]'")
    found = differences(_empty(source.create, near, state), state)
    asked, choice = (f"{one.name} --shortcut {one.variant}" if one.variant == PAD else one.name for one in (spec, near))
    if not found:
        return f"is a checkpoint of {choice}, not of {asked}; export {choice}"
    return f"does not fit {asked}: the closest known is {choice}, with {layout.name}, and it differs: {found}"


def _empty(create: Callable[[ModelSpec, int | None, int | None], nn.Module], spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with a checkpoint's numbers of classes and channels, and no values yet: initialising what is replaced costs seconds."""
    head, stem = state.get("fc.weight"), state["conv1.weight"]
    with torch.device("meta"):
        module = create(spec, None if head is None else head.shape[0], stem.shape[1])
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
    return Shape(blocks, "layer1.0.conv3.weight" in state, groups, second.shape[1], "cifar" if stem.shape[2] == 3 else "imagenet")


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


def _renamed(key: str, layout: Layout) -> str:
    for pattern, replacement in layout.rules:
        changed, times = re.subn(f"^{pattern}", replacement, key)
        if times:
            key = changed
            break
    for pattern, replacement in BLOCK_RULES:
        key = re.sub(pattern, replacement, key)
    return key


def _shortcut(key: str, state: Mapping[str, Tensor]) -> str:
    """d2l.ai calls the shortcut's convolution `conv3`, and has no third batch norm."""
    match = re.fullmatch(r"(layer\d\.\d+\.)conv3\.(weight|bias)", key)
    return f"{match[1]}downsample.0.{match[2]}" if match and f"{match[1]}bn3.weight" not in state else key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
