"""Take the head off a ResNet: a feature extractor for a detector, a segmentation network or a search index.

`pool` is the pooled vector, one output `features` (batch, channels); `stages` are the outputs of `layer1`, `layer2`
..., each under its own name, (batch, channels, height, width), at strides of 4 to 32 (a CIFAR network has three stages,
at strides of 1 to 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exporter.models.determinism import plain_fp32
from exporter.models.failing_layer import foreign_code, reason
from exporter.models.loaded import LoadedModel
from exporter.models.request import FEATURES
from runtimes.errors import PlanError
from runtimes.parity.compare import LOGITS

POOLED = "features"
HEADS = ("fc", "classifier", "linear", "head")
STAGE = "layer"


class Features(nn.Module):
    """The parts of a network up to where the features are taken, run one after the other under their own names.

    Input: float32 (batch, channels, height, width). Output: the features `names`, in that order; for one, its tensor.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        parts = dict(network.named_children())
        stages = [name for name in parts if name.startswith(STAGE) and name.removeprefix(STAGE).isdecimal()]
        if not stages:
            raise PlanError(
                "--features needs a network with the stages layer1, layer2 ..., "
                f"got one of {', '.join(parts) or 'no parts'}"
            )
        self.names = tuple(stages) if kind == "stages" else (POOLED,)
        last = list(parts).index(stages[-1])
        for place, (name, part) in enumerate(parts.items()):
            if place <= last or (kind == "pool" and name not in HEADS):
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = []
        for name, part in self.named_children():
            x = part(x)
            if name in self.names:
                found.append(x)
        return tuple(found) if found else x.flatten(1)


def output_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's outputs; a classifier's is `logits`."""
    return module.names if isinstance(module, Features) else (LOGITS,)


def with_features(loaded: LoadedModel, kind: str | None) -> LoadedModel:
    """A model that returns features of a kind in place of logits; the model itself for None.

    Raises:
        PlanError: the network has no stages, or does more than run its parts one after the other.
    """
    if kind is None:
        return loaded
    assert kind in FEATURES
    module = Features(loaded.module, kind).eval()
    _check_order(loaded.module, module, loaded.preprocess.shape)
    return replace(loaded, module=module, facts=replace(loaded.facts, classes=0), labels=None)


class _Reached(Exception):
    """Raised to end the network's run after the last part that matters; its head may be missing."""


def _check_order(network: nn.Module, features: Features, shape: Sequence[int]) -> None:
    """Check that the network itself runs its parts one after the other, with nothing between, and pools by one of them.

    Raises:
        PlanError: it does not.
    """
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    parts = [name for name, _ in features.named_children()]
    refusal = (
        f"--features expects a network that runs its parts {', '.join(parts)} one after the other, "
        "got one that does more than that"
    )
    with foreign_code(lambda error: PlanError(f"{refusal}: {reason(error)}")), plain_fp32(), torch.inference_mode():
        seen = _outputs_of_parts(network, parts, example)
        result = features(example)
        if isinstance(result, tuple):
            same = all(
                name in seen and torch.equal(seen[name], one) for name, one in zip(features.names, result, strict=True)
            )
        else:
            *_, (_, pooled) = seen.items()
            same = pooled.shape[2:].numel() == 1 and torch.equal(pooled.flatten(1), result)
    if not same:
        raise PlanError(refusal)


def _outputs_of_parts(network: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    """Run the network itself, and return what each part returns, in the order in which they ran."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            seen[name] = output.clone()  # what follows may write to it
            if name == names[-1]:
                raise _Reached

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with suppress(_Reached):
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
