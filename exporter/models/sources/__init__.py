"""Plug-ins: where models come from. A file's name is that in `ModelSpec.source`; each satisfies `ModelSource`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from exporter.models.find_network import Checkpoint, FittedModule
    from exporter.models.spec import ModelSpec, Pretrained
    from runtimes.preprocess import Preprocess


class ModelSource(Protocol):
    """What the file of a model source defines."""

    def create(self, spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
        """Make a module with fresh weights, drawn from torch's current random state.

        Args:
            classes: the number of classes; None for the model's own.
            channels: the number of input channels; None for the model's own.
        """

    def load(self, spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
        """Make a module with a checkpoint's weights, which tell how many classes and channels it has.

        Raises:
            BadInput: the checkpoint does not fit.
        """

    def pretrained(self, spec: ModelSpec) -> Pretrained:
        """Make the module with its default weights (`--weights default`).

        Raises:
            WeightsUnavailable: they could not be fetched.
        """

    def preprocess(self, spec: ModelSpec) -> Preprocess:
        """The preprocessing that the model expects, before `--image-size`, `--mean` and the like."""
