"""The record of a model with its weights, ready to be traced."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from runtimes.manifest import ModelFacts
from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights.

    Attributes:
        module: in evaluation mode, FP32, on the CPU.
        facts: what the manifest says of it.
        labels: class names in the order of the outputs; None where unknown.
        left_out: what of the checkpoint is not in the module, a sentence for each kind.
    """

    module: nn.Module
    facts: ModelFacts
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
