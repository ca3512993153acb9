"""Plug-ins: precisions, each a rewrite of an FP32 graph. The file's name is the flag's name; each satisfies `Precision`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx

    from runtimes.parity.budget import Budget


class Precision(Protocol):
    """What a precision's file defines."""

    @property
    def BUDGET(self) -> Budget:  # a constant of the file
        """What parity allows."""

    @property
    def RUNS_ON(self) -> tuple[str, ...]:
        """The backends that run its file on a CPU, and so prove it; none where only the simulation does."""

    def observed(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """The tensors whose ranges are to be measured first; none where no calibration is needed."""

    def lower(self, model: onnx.ModelProto, thresholds: Mapping[str, float]) -> onnx.ModelProto:
        """The graph in this precision; `model` stays as it was.

        Args:
            thresholds: for each observed tensor the largest magnitude that it is to hold.

        Raises:
            LowerError: the precision cannot hold the model's values.
        """

    def simulated(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
        """The lowered graph rewritten so that a CPU rounds as a device does; None where it does so anyway."""
