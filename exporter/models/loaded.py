"""A model with its weights, ready to be traced."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from runtimes.manifest import ModelFacts
from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class LoadedModel:
    """A module in evaluation mode, what the manifest says of it, and what of the checkpoint was left out, a sentence
    for each kind."""

    module: nn.Module
    facts: ModelFacts
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
