"""Plug-ins: where models come from. One file per source, named as `ModelSpec.source`; each satisfies `ModelSource`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from exporter.models.spec import ModelSpec, Pretrained
    from exporter.models.wrappers import Checkpoint, FittedModule
    from runtimes.preprocess import Preprocess


class ModelSource(Protocol):
    """What a source's file defines."""

    def create(self, spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
        """A module with fresh weights, drawn from torch's current random state; None takes the model's own number."""

    def load(self, spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
        """A module with a checkpoint's weights, which say how many classes and channels it has.

        Raises:
            BadInput: the checkpoint does not fit.
        """

    def pretrained(self, spec: ModelSpec) -> Pretrained:
        """The module that `--weights default` means.

        Raises:
            WeightsUnavailable: they could not be fetched.
        """

    def preprocess(self, spec: ModelSpec) -> Preprocess:
        """What the model expects of images where nothing else says."""
