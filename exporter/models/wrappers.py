"""Where in a checkpoint the network stands, and what stands beside it: losses, counters, copies and projections of the
training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exporter.models.part_names import HEAD, KNOWN, LAYOUTS, Layout, renamed
from runtimes.errors import BadInput

COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Where torch.optim.swa_utils.AveragedModel and thop count."""
TRAINING = re.compile(
    r"(.*_)?(criterion|criterions|loss|losses|loss_fn|loss_func|metric|metrics|accuracy|acc|auroc|confmat|confusion_matrix|f1)(_.*)?"
    r"|(class|pos|cls|ce|bce)_weights?|cross_entropy|bce|ce|nll"
)
"""First parts of names under which Lightning modules keep losses and metrics."""
AVERAGE = re.compile(r"(.*_)?(ema|swa|averaged?|avg)(_.*)?")
FOLLOWER = re.compile(r"(.*_)?(momentum|encoder_k|key_encoder|encoder_m|target)(_.*)?")
"""The network that MoCo (`encoder_k`, `momentum_encoder`) and BYOL (`target_encoder`) let follow the one that
learns."""
PROJECTION = re.compile(
    r"fc|head|linear|classifier|last_linear|(.*_)?(proj\w*|predictor\w*|prediction\w*|prototypes?|queue\w*|mlp\w*)"
)
"""First parts of names behind a self-supervised network's pooled vector."""
SHOWN_KEYS = 4


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors.

    Attributes:
        state: by the names they have there, floats as FP32.
        where: the file, for messages.
        headless: nothing behind the pooled vector is wanted (`--features`).
    """

    state: Mapping[str, Tensor]
    where: str
    headless: bool = False


@dataclass(frozen=True)
class Fitted:
    """A module with a checkpoint's weights.

    Attributes:
        left_out: what of the checkpoint is not in it, a sentence for each kind.
        layout: how the checkpoint names the parts; None where under the module's own names.
    """

    module: nn.Module
    left_out: tuple[str, ...] = ()
    layout: Layout | None = None


@dataclass(frozen=True)
class Network:
    """One residual network of a checkpoint.

    Attributes:
        prefix: what stands before the names of all its parts.
        tensors: under torchvision's names; those that the layout does not know keep theirs.
        keys: the checkpoint's name of each.
    """

    prefix: str
    layout: Layout
    tensors: dict[str, Tensor]
    keys: dict[str, str] = field(repr=False)

    @property
    def known(self) -> int:
        return sum(KNOWN.fullmatch(name) is not None for name in self.tensors)

    def is_whole(self) -> bool:
        """A stem and a first block: more than a convolution that happens to be called conv1."""
        return {"conv1.weight", "layer1.0.conv2.weight"} <= self.tensors.keys()


@dataclass(frozen=True)
class Found:
    """The network of a checkpoint.

    Attributes:
        tensors: its own, head and all, under torchvision's names.
        unknown: what is there beside, by the checkpoint's names, and may be part of what it computes.
        left_out: as in `Fitted`.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    unknown: dict[str, Tensor]
    left_out: tuple[str, ...]


def network_of(checkpoint: Checkpoint) -> Found | None:
    """The residual network in a checkpoint, behind whatever prefix; None where there is none.

    Raises:
        BadInput: there are several, or halves of pruned weights.
    """
    state, counters = without_counters(pruned(checkpoint.state, checkpoint.where))
    networks = _networks(state)
    if not networks:
        return None
    chosen, copies = _chosen(networks, checkpoint)
    tensors, head = _with_head(chosen, state, copies, checkpoint)
    taken = {chosen.keys[name] for name in tensors if name in chosen.keys} | head
    beside = _without(state, taken)
    left_out = [_sentence(counters, "counters of a profiler or an average")] if counters else []
    for copy in copies:
        keys = [key for key in beside if key.startswith(copy.prefix)]
        left_out.append(_sentence(keys, f"a copy of the network, '{copy.prefix}'"))
        beside = _without(beside, keys)
    for what, keys in _of_training(beside, chosen.prefix, checkpoint).items():
        left_out.append(_sentence(keys, what, _groups(keys, chosen.prefix)))
        beside = _without(beside, keys)
    return Found(chosen.layout, tensors, beside, tuple(left_out))


def pruned(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`weight_orig` times `weight_mask` as `weight`, as torch.nn.utils.prune computes it in every forward pass.

    Raises:
        BadInput: a mask of another shape.
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


def without_counters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors but those of counters, and the names of the latter."""
    counters = [key for key in state if key.rpartition(".")[2] in COUNTERS]
    return _without(state, counters), counters


def training_only(keys: Iterable[str], prefix: str) -> list[str]:
    """Those of losses and metrics, by the first part of their names behind the prefix or any part of it."""
    return [key for key in keys if TRAINING.fullmatch(_first_part(key, prefix))]


def _without(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    left = set(keys)
    return {key: value for key, value in state.items() if key not in left}


def _networks(state: Mapping[str, Tensor]) -> list[Network]:
    """Every network in a checkpoint; a tensor belongs to the one with the longest prefix."""
    candidates = {
        (key[:start], layout)
        for key, value in state.items()
        if value.ndim == 4
        for start in (0, *(match.end() for match in re.finditer(r"\.", key)))
        for layout in LAYOUTS
        if renamed(key[start:], layout) == "conv1.weight"
    }
    networks: list[Network] = []
    for prefix in sorted({prefix for prefix, _ in candidates}, key=lambda prefix: (-len(prefix), prefix)):
        keys = [
            key
            for key in state
            if key.startswith(prefix) and not any(key.startswith(other.prefix) for other in networks)
        ]
        read = [_read(keys, prefix, layout, state) for layout in LAYOUTS if (prefix, layout) in candidates]
        best = max(read, key=lambda network: network.known)
        if best.is_whole():
            networks.append(best)
    return sorted(networks, key=lambda network: list(state).index(network.keys["conv1.weight"]))


def _read(keys: list[str], prefix: str, layout: Layout, state: Mapping[str, Tensor]) -> Network:
    names = {key: renamed(key.removeprefix(prefix), layout) for key in keys}
    times = Counter(names.values())  # a head of two layers would become one
    own = {key: name if times[name] == 1 else key.removeprefix(prefix) for key, name in names.items()}
    return Network(
        prefix, layout, {name: state[key] for key, name in own.items()}, {name: key for key, name in own.items()}
    )


def _chosen(networks: list[Network], checkpoint: Checkpoint) -> tuple[Network, list[Network]]:
    """The network to take, and copies of it: a moving average, and the one that follows it in self-supervised training.

    Raises:
        BadInput: two are left, or there are only such copies whose head is none of a classifier.
    """
    steady = [one for one in networks if not _is(AVERAGE, one.prefix)] or networks
    leading = [one for one in steady if not _is(FOLLOWER, one.prefix)] or steady
    if len(leading) > 1:
        prefixes = " and ".join(f"'{one.prefix}'" for one in leading)
        raise BadInput(
            f"{checkpoint.where} holds {len(leading)} networks, told apart by prefix alone: {prefixes}; "
            "save the one to export"
        )
    (chosen,) = leading
    if len(steady) > 1 and not checkpoint.headless:
        raise BadInput(
            f"{checkpoint.where} is of self-supervised training, the network '{chosen.prefix}' and one that follows "
            "it, "
            "so its head gives no classes; give --features pool or stages for what is before it"
        )
    return chosen, [one for one in networks if one is not chosen]


def _with_head(
    network: Network, state: Mapping[str, Tensor], copies: list[Network], checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], set[str]]:
    """The network's known tensors and, where it has none inside, the head that stands outside; and the latter's names
    in the checkpoint."""
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
        match = re.fullmatch(rf"{names}(?:\.\d+)?\.(weight|bias)", _behind_prefix(key, network.prefix))
        if match and key not in inside and not any(key.startswith(copy.prefix) for copy in copies):
            found[match[1]].append(key)
    weights = found["weight"]
    if len(weights) != 1 or len(found["bias"]) > 1 or state[weights[0]].ndim != 2:
        return tensors, set()
    head = {f"fc.{part}": keys[0] for part, keys in found.items() if keys}
    return tensors | {name: state[key] for name, key in head.items()}, set(head.values())


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Channels of the last stage."""
    last = max(name for name in tensors if re.fullmatch(r"layer[1-4]\.0\.conv[23]\.weight", name))
    return int(tensors[last].shape[0])


def _of_training(beside: Mapping[str, Tensor], prefix: str, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What a checkpoint holds beside the network and a bundle has no use for, by kind."""
    found = {"losses and metrics": training_only(beside, prefix)}
    if checkpoint.headless:
        found["what is behind the pooled vector"] = [
            key
            for key, value in beside.items()
            if key not in found["losses and metrics"]
            and value.ndim
            <= 2  # a convolution would be part of something else, a detector perhaps, whose strides may be others
            and (not key.startswith(prefix) or PROJECTION.fullmatch(_first_part(key, prefix)))
        ]
    return {what: keys for what, keys in found.items() if keys}


def _first_part(key: str, prefix: str) -> str:
    return _behind_prefix(key, prefix).partition(".")[0]


def _behind_prefix(key: str, prefix: str) -> str:
    """A name without as much of the prefix as it shares: `module.fc.weight` stands behind `module.` of
    `module.backbone.`."""
    for part in prefix.split("."):
        if not part or not key.startswith(f"{part}."):
            break
        key = key.removeprefix(f"{part}.")
    return key


def _is(kind: re.Pattern[str], prefix: str) -> bool:
    return any(kind.fullmatch(part) for part in prefix.split(".") if part)


def _groups(keys: list[str], prefix: str) -> list[str]:
    """`module.predictor.*` for all that begin so."""
    groups = []
    for key in keys:
        behind = _behind_prefix(key, prefix)
        first, dot, _ = behind.partition(".")
        groups.append(f"{key.removesuffix(behind)}{first}{dot and '.*'}")
    return list(dict.fromkeys(groups))


def _sentence(keys: list[str], what: str, shown: list[str] | None = None) -> str:
    return f"{len(keys)} tensors of the checkpoint, {what}: {some(shown or keys)}"


def some(keys: Iterable[str]) -> str:
    """The first few names."""
    shown = list(keys)
    return ", ".join(shown[:SHOWN_KEYS]) + (", ..." if len(shown) > SHOWN_KEYS else "")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """
    Raises:
        BadInput: a value is NaN or infinite.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise BadInput(
                f"{where}: '{key}' holds NaN or infinite values; the training run diverged, take an earlier checkpoint"
            )
