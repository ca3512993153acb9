"""Find the network in a checkpoint, beside the losses, counters, copies and projections that training left there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exporter.models.leftovers import abbreviate, after_prefix, counter_names, sentence, training_leftovers, without
from exporter.models.part_names import HEAD, KNOWN, LAYOUTS, Layout, torchvision_name
from runtimes.errors import BadInput

AVERAGE = re.compile(r"(.*_)?(ema|swa|averaged?|avg)(_.*)?")
FOLLOWER = re.compile(r"(.*_)?(momentum|encoder_k|key_encoder|encoder_m|target)(_.*)?")
"""The network that follows the one that learns: `encoder_k`, `momentum_encoder` (MoCo), `target_encoder` (BYOL)."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors.

    Attributes:
        state: the tensors by the checkpoint's own names, floats as FP32.
        where: what messages call it: its file.
        headless: nothing after the pooled vector is needed (`--features`).
    """

    state: Mapping[str, Tensor]
    where: str
    headless: bool = False


@dataclass(frozen=True)
class FittedModule:
    """A module with a checkpoint's weights.

    Attributes:
        left_out: what of the checkpoint is not in the module, a sentence for each kind.
        layout: how the checkpoint names the parts; None if by the module's own names.
    """

    module: nn.Module
    left_out: tuple[str, ...] = ()
    layout: Layout | None = None


@dataclass(frozen=True)
class Network:
    """One residual network of a checkpoint.

    Attributes:
        prefix: the common beginning of the names of all its parts.
        layout: how it names the parts.
        tensors: its tensors by torchvision's names; a tensor that the layout does not know keeps its name.
        keys: torchvision's name -> the checkpoint's.
    """

    prefix: str
    layout: Layout
    tensors: dict[str, Tensor]
    keys: dict[str, str] = field(repr=False)

    @property
    def known(self) -> int:
        """How many of its tensors torchvision's networks have as well."""
        return sum(KNOWN.fullmatch(name) is not None for name in self.tensors)

    def is_whole(self) -> bool:
        """Whether it has a stem and a first block, and is no mere convolution that happens to be called conv1."""
        return {"conv1.weight", "layer1.0.conv2.weight"} <= self.tensors.keys()


@dataclass(frozen=True)
class FoundNetwork:
    """The network that was found in a checkpoint.

    Attributes:
        layout: how it names the parts.
        tensors: its tensors, the head's included, by torchvision's names.
        unknown: further tensors by the checkpoint's names, which may be part of what the network computes.
        left_out: as in `FittedModule`.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    unknown: dict[str, Tensor]
    left_out: tuple[str, ...]


def find_network(checkpoint: Checkpoint) -> FoundNetwork | None:
    """Find the residual network in a checkpoint, behind whatever prefix; None if there is none.

    Raises:
        BadInput: there are several, or a pruning mask that does not fit its weight.
    """
    state = apply_pruning_masks(checkpoint.state, checkpoint.where)
    counters = counter_names(state)
    state = without(state, counters)
    networks = _networks(state)
    if not networks:
        return None
    chosen, copies = _choose_network(networks, checkpoint)
    tensors, head = _with_head(chosen, state, copies, checkpoint)
    taken = {chosen.keys[name] for name in tensors if name in chosen.keys} | head
    beside = without(state, taken)
    left_out = [sentence(counters, "counters of a profiler or an average")] if counters else []
    for copy in copies:
        keys = [key for key in beside if key.startswith(copy.prefix)]
        left_out.append(sentence(keys, f"a copy of the network, '{copy.prefix}'"))
        beside = without(beside, keys)
    for what, keys in training_leftovers(beside, chosen.prefix, headless=checkpoint.headless).items():
        left_out.append(sentence(keys, what, abbreviate(keys, chosen.prefix)))
        beside = without(beside, keys)
    return FoundNetwork(chosen.layout, tensors, beside, tuple(left_out))


def apply_pruning_masks(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Replace `weight_orig` and `weight_mask` by their product `weight`, as torch.nn.utils.prune does when it runs.

    Raises:
        BadInput: a mask has another shape than its weight.
    """
    result = dict(state)
    for key in [key for key in state if key.endswith("_mask") and f"{key[:-5]}_orig" in state]:
        mask, own = result.pop(key), result.pop(f"{key[:-5]}_orig")
        if mask.shape != own.shape:
            raise BadInput(
                f"{where}: expected '{key}' of shape {tuple(own.shape)}, got {tuple(mask.shape)}; is it complete?"
            )
        result[key[:-5]] = mask.to(own.dtype) * own
    return result


def _networks(state: Mapping[str, Tensor]) -> list[Network]:
    """Find every network in a checkpoint; a tensor belongs to the one with the longest prefix of its name."""
    candidates = {
        (key[:start], layout)
        for key, value in state.items()
        if value.ndim == 4
        for start in (0, *(match.end() for match in re.finditer(r"\.", key)))
        for layout in LAYOUTS
        if torchvision_name(key[start:], layout) == "conv1.weight"
    }
    networks: list[Network] = []
    for prefix in sorted({prefix for prefix, _ in candidates}, key=lambda prefix: (-len(prefix), prefix)):
        keys = [
            key
            for key in state
            if key.startswith(prefix) and not any(key.startswith(other.prefix) for other in networks)
        ]
        read = [_network_under(keys, prefix, layout, state) for layout in LAYOUTS if (prefix, layout) in candidates]
        best = max(read, key=lambda network: network.known)
        if best.is_whole():
            networks.append(best)
    return sorted(networks, key=lambda network: list(state).index(network.keys["conv1.weight"]))


def _network_under(keys: list[str], prefix: str, layout: Layout, state: Mapping[str, Tensor]) -> Network:
    """Read the tensors `keys`, whose names begin with `prefix`, as a network whose parts a layout names."""
    names = {key: torchvision_name(key.removeprefix(prefix), layout) for key in keys}
    times = Counter(names.values())  # a head of two layers would become one
    own = {key: name if times[name] == 1 else key.removeprefix(prefix) for key, name in names.items()}
    return Network(
        prefix, layout, {name: state[key] for key, name in own.items()}, {name: key for key, name in own.items()}
    )


def _choose_network(networks: list[Network], checkpoint: Checkpoint) -> tuple[Network, list[Network]]:
    """Choose the network to export; the others are copies: a moving average, or one that follows it in training.

    Raises:
        BadInput: several are left, or the checkpoint comes from self-supervised training and a head is needed.
    """
    steady = [one for one in networks if not _any_part_matches(AVERAGE, one.prefix)] or networks
    leading = [one for one in steady if not _any_part_matches(FOLLOWER, one.prefix)] or steady
    if len(leading) > 1:
        prefixes = " and ".join(f"'{one.prefix}'" for one in leading)
        raise BadInput(
            f"{checkpoint.where} holds {len(leading)} networks, told apart by prefix alone: {prefixes}; "
            "save the one to export"
        )
    (chosen,) = leading
    if len(steady) > 1 and not checkpoint.headless:
        raise BadInput(
            f"{checkpoint.where} comes from self-supervised training, with the network '{chosen.prefix}' and one that "
            "follows "
            "it, "
            "so its head gives no classes; give --features pool or stages for what is before it"
        )
    return chosen, [one for one in networks if one is not chosen]


def _with_head(
    network: Network, state: Mapping[str, Tensor], copies: list[Network], checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], set[str]]:
    """The network's known tensors, with its head.

    Returns:
        The tensors by torchvision's names, and the checkpoint's names of a head that stands outside the network.
    """
    tensors = {name: value for name, value in network.tensors.items() if KNOWN.fullmatch(name)}
    if "fc.weight" in tensors:
        width = _width(tensors)
        fits = tensors["fc.weight"].ndim == 2 and tensors["fc.weight"].shape[1] == width
        if checkpoint.headless and not fits:
            tensors = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
        return tensors, set()
    names = HEAD
    if network.prefix.rstrip(".").rpartition(".")[2].isdecimal():
        names = rf"(?:{HEAD}|\d+)"  # nn.Sequential(network, nn.Flatten(), nn.Linear(...))
    inside = {network.keys[name] for name in tensors}
    found: dict[str, list[str]] = {"weight": [], "bias": []}
    for key in state:
        match = re.fullmatch(rf"{names}(?:\.\d+)?\.(weight|bias)", after_prefix(key, network.prefix))
        if match and key not in inside and not any(key.startswith(copy.prefix) for copy in copies):
            found[match[1]].append(key)
    weights = found["weight"]
    if len(weights) != 1 or len(found["bias"]) > 1 or state[weights[0]].ndim != 2:
        return tensors, set()
    head = {f"fc.{part}": keys[0] for part, keys in found.items() if keys}
    return tensors | {name: state[key] for name, key in head.items()}, set(head.values())


def _width(tensors: Mapping[str, Tensor]) -> int:
    """The number of channels that the last stage returns."""
    last = max(name for name in tensors if re.fullmatch(r"layer[1-4]\.0\.conv[23]\.weight", name))
    return int(tensors[last].shape[0])


def _any_part_matches(kind: re.Pattern[str], prefix: str) -> bool:
    return any(kind.fullmatch(part) for part in prefix.split(".") if part)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that all values are finite.

    Raises:
        BadInput: a value is NaN or infinite.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise BadInput(
                f"{where}: '{key}' holds NaN or infinite values; the training run diverged, take an earlier checkpoint"
            )
