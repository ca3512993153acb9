"""The record of a model with its weights, ready to be traced or taken in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtimes.manifest import ModelFacts
from runtimes.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights, wherever it comes from.

    Attributes:
        facts: what the manifest says of it.
        labels: class names in the order of the outputs; None where unknown.
        left_out: what of the checkpoint or the file is not taken, a sentence for each kind.
    """

    facts: ModelFacts
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Loaded):
    """A PyTorch module with its weights: `module` is in evaluation mode, FP32, on the CPU."""

    module: nn.Module
