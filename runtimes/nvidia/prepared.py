"""An engine run again and again on inputs that lie on the device: what the device alone takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from runtimes.errors import BackendUnavailable
from runtimes.nvidia.cuda import DeviceBuffer, Graph, PinnedBuffer, Stream, copy_to_device
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.lane import Lane


def prepared_call(
    lane: Lane,
    stream: Stream,
    feeds: Mapping[str, NDArray[Any]],
    sizes: Mapping[str, int],
    owned: ExitStack,
    *,
    graph: bool,
) -> Callable[[], None]:
    """A call that runs a lane of its own, with memory of its own, and waits for it.

    Args:
        lane: with its shapes set; nobody else uses it.
        feeds: the inputs, contiguous.
        sizes: of all tensors, in bytes.
        owned: frees the lane and its memory; the call does not work after that.
        graph: launch it as a CUDA graph where it can be captured.

    Raises:
        BackendUnavailable: the engine cannot run.
    """
    with ExitStack() as made:
        buffers = {name: made.enter_context(DeviceBuffer(size)) for name, size in sizes.items()}
        made.callback(stream.synchronize)  # before the memory is given back, where something fails
        lane.bind(buffers)
        with ExitStack() as staged:
            for name, array in feeds.items():
                pinned = staged.enter_context(PinnedBuffer(sizes[name]))
                pinned.view(array.dtype, array.shape)[...] = array
                copy_to_device(buffers[name].pointer, pinned.pointer, sizes[name], stream)
            stream.synchronize()
        lane.execute(stream)  # once after every change of shapes: what TensorRT does then cannot be captured
        stream.synchronize()
        if graph:
            _capture(lane, stream)
        made.callback(lane.close)
        lanes = [lane]
        made.callback(lanes.clear)  # the caller may keep the call; the context ends with its engine
        owned.enter_context(made.pop_all())

    def call() -> None:
        (one,) = lanes
        if one.graph is not None:
            one.graph.launch(stream)
        else:
            one.execute(stream)
        stream.synchronize()

    return call


def _capture(lane: Lane, stream: Stream) -> None:
    """Capture the lane's kernels; where that fails, they are queued one by one."""
    try:
        lane.graph = Graph.capture(stream, lambda: lane.execute(stream))
    except (CudaError, BackendUnavailable):
        lane.graph = None
