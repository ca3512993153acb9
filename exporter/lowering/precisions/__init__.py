"""Plug-ins: precisions, rewrites of an FP32 graph, one per file, named as its flag; each satisfies `Precision`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from exporter.lowering.qdq.targets import DEFAULT_TARGET

if TYPE_CHECKING:
    import onnx

    from runtimes.parity.budget import Budget


class Precision(Protocol):
    """What a precision's file defines."""

    @property
    def BUDGET(self) -> Budget:  # a constant of the file
        """The errors that parity allows."""

    def runs_on(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """The backends that run a lowered graph on a CPU, and so prove it; empty if only the simulation can."""

    def observed_tensors(self, model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> tuple[str, ...]:
        """The tensors whose ranges must be measured before lowering; empty for a precision without calibration.

        Raises:
            PlanError: there is nothing to lower to this precision; says why.
        """

    def lower(
        self,
        model: onnx.ModelProto,
        thresholds: Mapping[str, float],
        target: str = DEFAULT_TARGET,
        float_nodes: Collection[str] = (),
    ) -> onnx.ModelProto:
        """The graph in this precision; `model` is not changed.

        Args:
            thresholds: observed tensor -> the largest magnitude that it must hold.
            target: where Q/DQ pairs go; means nothing to a precision without them.
            float_nodes: names of the nodes that read nothing quantized; likewise.

        Raises:
            LowerError: the precision cannot hold the model's values.
        """

    def simulation(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
        """Rewrite a lowered graph so that a CPU rounds as a device does; None if a CPU does so anyway."""
