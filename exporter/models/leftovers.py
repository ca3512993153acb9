"""Sort out the tensors of a checkpoint that only training needs, and name them for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Last parts of the names under which torch.optim.swa_utils.AveragedModel and thop count."""
TRAINING = re.compile(
    r"(.*_)?(criterion|criterions|loss|losses|loss_fn|loss_func)(_.*)?"
    r"|(.*_)?(metric|metrics|accuracy|acc|auroc|confmat|confusion_matrix|f1)(_.*)?"
    r"|(class|pos|cls|ce|bce)_weights?|cross_entropy|bce|ce|nll"
)
"""First parts of names under which Lightning modules keep losses and metrics."""
PROJECTION = re.compile(
    r"fc|head|linear|classifier|last_linear|(.*_)?(proj\w*|predictor\w*|prediction\w*|prototypes?|queue\w*|mlp\w*)"
)
"""First parts of the names of what follows a self-supervised network's pooled vector."""
SHOWN_KEYS = 4


def counter_names(keys: Iterable[str]) -> list[str]:
    """The names of profilers' and averages' counters among `keys`."""
    return [key for key in keys if key.rpartition(".")[2] in COUNTERS]


def training_keys(keys: Iterable[str], prefix: str) -> list[str]:
    """The names of losses and metrics among `keys`, told by their first part after the shared prefix."""
    return [key for key in keys if TRAINING.fullmatch(_first_part(key, prefix))]


def training_leftovers(beside: Mapping[str, Tensor], prefix: str, *, headless: bool) -> dict[str, list[str]]:
    """The names of tensors beside the network for which a bundle has no use, by kind."""
    found = {"losses and metrics": training_keys(beside, prefix)}
    if headless:
        # Not a convolution, which would be part of something else, perhaps of a detector, whose strides may differ.
        found["what is behind the pooled vector"] = [
            key
            for key, value in beside.items()
            if key not in found["losses and metrics"]
            and value.ndim <= 2
            and (not key.startswith(prefix) or PROJECTION.fullmatch(_first_part(key, prefix)))
        ]
    return {what: keys for what, keys in found.items() if keys}


def without(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """The tensors whose names are not among `keys`."""
    left = set(keys)
    return {key: value for key, value in state.items() if key not in left}


def first_few(keys: Iterable[str]) -> str:
    """The first few names, for a message."""
    shown = list(keys)
    return ", ".join(shown[:SHOWN_KEYS]) + (", ..." if len(shown) > SHOWN_KEYS else "")


def sentence(keys: list[str], what: str, shown: list[str] | None = None) -> str:
    """Say what was left out, for `left_out`: how many tensors, of what kind, and the first few names."""
    return f"{len(keys)} tensors of the checkpoint, {what}: {first_few(shown or keys)}"


def abbreviate(keys: list[str], prefix: str) -> list[str]:
    """Abbreviate names: `module.predictor.*` for all that begin so."""
    groups = []
    for key in keys:
        behind = after_prefix(key, prefix)
        first, dot, _ = behind.partition(".")
        groups.append(f"{key.removesuffix(behind)}{first}{dot and '.*'}")
    return list(dict.fromkeys(groups))


def _first_part(key: str, prefix: str) -> str:
    return after_prefix(key, prefix).partition(".")[0]


def after_prefix(key: str, prefix: str) -> str:
    """A name without as much of the prefix as it shares: of `module.fc.weight`, `fc.weight` for `module.backbone.`."""
    for part in prefix.split("."):
        if not part or not key.startswith(f"{part}."):
            break
        key = key.removeprefix(f"{part}.")
    return key
