"""One execution context of an engine: its shapes, its memory, and the CUDA graph of its work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BackendUnavailable
from runtimes.nvidia.cuda import DeviceBuffer, Graph, Stream
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.log import log_of
from runtimes.nvidia.shapes import Shapes, rows_of
from runtimes.specs import BatchRange, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

REPLAY_TOLERANCE = 1e-3
"""The largest difference, relative to the largest value, of a graph's first replay from the plain run: kernels may sum
in another order."""


class Lane:
    """An execution context at one batch size, and the graph of its work once there is one.

    Attributes:
        shapes: of all tensors; empty until they are set.
        graph: captured by the lane's owner; the lane closes it.
    """

    def __init__(
        self, api: Any, context: trt.IExecutionContext, inputs: Sequence[TensorSpec], batch: BatchRange | None
    ) -> None:
        self.context = context
        self.shapes: Shapes = {}
        self.graph: Graph | None = None
        self._api = api
        self._inputs = inputs
        self._batch = batch

    def set_shapes(self, shapes: Shapes) -> None:
        """Set the shapes of the inputs, from which TensorRT tells the others.

        Raises:
            BackendUnavailable: TensorRT does not take them; no shapes are set then.
        """
        if self.shapes == shapes:
            return
        rows = rows_of(shapes)
        self.shapes = {}  # whatever fails below, the context has not the old shapes any more
        with log_of(self._api).recording() as recording:
            for spec in self._inputs:
                if not self.context.set_input_shape(spec.name, shapes[spec.name]):
                    raise BackendUnavailable(
                        f"TensorRT does not take a batch of {rows} for '{spec.name}' (range {self._batch}): "
                        f"{recording.own_reason}"
                    )
            try:
                missing = self.context.infer_shapes()
            except RuntimeError as error:
                raise BackendUnavailable(
                    f"TensorRT cannot tell the shapes for a batch of {rows}: {recording.own_reason}"
                ) from error
            if missing:
                raise BackendUnavailable(
                    f"TensorRT cannot tell the shapes of {', '.join(missing)}: {recording.own_reason}"
                )
        self.shapes = shapes

    def bind(self, buffers: Mapping[str, DeviceBuffer]) -> None:
        """Tell the context the addresses of its tensors, which never change.

        Raises:
            BackendUnavailable: TensorRT does not take them.
        """
        for name, buffer in buffers.items():
            if not self.context.set_tensor_address(name, buffer.pointer):
                raise BackendUnavailable(
                    f"TensorRT refuses the memory for '{name}'; build the engine again with: resnet-deploy build BUNDLE"
                )

    def execute(self, stream: Stream) -> None:
        """Queue the engine's kernels, which read and write the memory that `bind` told.

        Raises:
            BackendUnavailable: TensorRT could not queue them.
        """
        with log_of(self._api).recording() as recording:
            if not self.context.execute_async_v3(stream.handle):
                raise BackendUnavailable(
                    f"TensorRT could not run a batch of {rows_of(self.shapes)}: {recording.own_reason}"
                )

    def close(self) -> None:
        """Close the graph, if there is one. Its work must be done."""
        if self.graph is not None:
            self.graph.close()

    def drop_graph(self, stream: Stream) -> None:
        """Close the graph, if there is one, after the stream's work."""
        if self.graph is not None:
            with suppress(CudaError), self.graph:  # of a device that is lost, which the next call will say
                stream.synchronize()


def is_same(replayed: NDArray[Any], plain: NDArray[Any]) -> bool:
    """Are two outputs the same up to rounding? What is not finite must be so in both."""
    largest = float(np.abs(plain[np.isfinite(plain)]).max(initial=0))
    return np.allclose(replayed, plain, rtol=0, atol=REPLAY_TOLERANCE * largest, equal_nan=True)
