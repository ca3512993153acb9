"""The part of CUDA that an engine needs: streams, events, buffers, copies, graphs. Every call is checked, and every
object is closed by its owner.

Objects are freed by `close()`, never by the garbage collector: it may run while queued work still uses the memory, and
`cudaFree` inside a capture breaks the graph. An object that is dropped open is a leak, and gives a ResourceWarning.
Synchronise the stream that used an object before closing it. An object belongs to the device that is current in the
thread that makes it.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from cuda.bindings.runtime import (  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types
    cudaDeviceAttr,
    cudaEventDisableTiming,
    cudaMemcpyKind,
    cudaStreamCaptureMode,
    cudaStreamNonBlocking,
)
from numpy.typing import DTypeLike, NDArray

from runtimes.nvidia.cuda_call import INSUFFICIENT_DRIVER, NO_DRIVER, CudaError, call, driver_is_here

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on; JetPack 6 has 3.10


@dataclass(frozen=True)
class Device:
    """A GPU. `driver` is the newest CUDA version that its driver runs; an `integrated` GPU shares the CPU's memory, as
    on a Jetson."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    integrated: bool
    driver: str

    @property
    def target(self) -> str:
        """`sm87` for compute capability 8.7."""
        return "sm{}{}".format(*self.compute_capability)


def device(index: int = 0) -> Device:
    """Make a GPU the calling thread's current one, and describe it. Every other thread has its own choice, at first GPU
    0.

    Raises:
        CudaError: there is no driver, it is too old, or there is no such device.
    """
    _check_driver()
    call("cudaSetDevice", index)
    free_bytes, total_bytes = call("cudaMemGetInfo")
    version = call("cudaDriverGetVersion")
    return Device(
        index=index,
        name=call("cudaGetDeviceProperties", index).name.split(b"\0")[0].decode(),
        compute_capability=(
            _attribute("cudaDevAttrComputeCapabilityMajor", index),
            _attribute("cudaDevAttrComputeCapabilityMinor", index),
        ),
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        integrated=bool(_attribute("cudaDevAttrIntegrated", index)),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def _check_driver() -> None:
    try:
        call("cudaGetDeviceCount")
    except CudaError as error:
        if error.code != INSUFFICIENT_DRIVER or driver_is_here():
            raise
        raise _without_driver("there is no NVIDIA driver here") from error
    except RuntimeError as error:  # without libcuda.so.1 cuda-python 12 raises, where 13 returns the code
        raise _without_driver(str(error)) from error


def _without_driver(text: str) -> CudaError:
    return CudaError("cudaGetDeviceCount", INSUFFICIENT_DRIVER, "cudaErrorInsufficientDriver", text, NO_DRIVER)


def _attribute(name: str, index: int) -> int:
    return int(call("cudaDeviceGetAttribute", getattr(cudaDeviceAttr, name), index))


@contextmanager
def _outside_capture() -> Iterator[None]:
    """Allow calls in the block that a capture in this thread would forbid; they act at once and do not become part of
    the graph."""
    relaxed = cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    before = call("cudaThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield
    finally:
        call("cudaThreadExchangeStreamCaptureMode", before)


class _Owned:
    """One CUDA object. It is closed once, by `close()` or at the end of a `with` block; a second `close()` does
    nothing."""

    FREE: ClassVar[str]

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @property
    def handle(self) -> int:
        assert self._handle is not None, f"this {type(self).__name__} is closed"
        return self._handle

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with _outside_capture():
                call(self.FREE, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except CudaError:
            if kind is None:  # otherwise the error on its way says more: after a crashed kernel every call fails
                raise

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            warnings.warn(f"a {type(self).__name__} was never closed", ResourceWarning, stacklevel=2, source=self)


@final
class Event(_Owned):
    """A point in a stream's queue of work, made by `Stream.record`."""

    FREE = "cudaEventDestroy"

    def __init__(self) -> None:
        super().__init__(int(call("cudaEventCreateWithFlags", cudaEventDisableTiming)))

    def before(self, stream_handle: int) -> None:
        """Make later work of a stream, which may be another library's, wait for this event."""
        call("cudaStreamWaitEvent", stream_handle, self.handle, 0)

    def synchronize(self) -> None:
        """Wait, on the CPU, until the work before this event is done."""
        with _outside_capture():
            call("cudaEventSynchronize", self.handle)


@final
class Stream(_Owned):
    """A queue of work, independent of the default stream. `handle` is its cudaStream_t."""

    FREE = "cudaStreamDestroy"

    def __init__(self) -> None:
        super().__init__(int(call("cudaStreamCreateWithFlags", cudaStreamNonBlocking)))

    def synchronize(self) -> None:
        """Wait, on the CPU, until all queued work is done. Errors of that work are raised here."""
        call("cudaStreamSynchronize", self.handle)

    def record(self) -> Event:
        """A new event, the caller's to close, after all work queued so far."""
        event = Event()
        try:
            call("cudaEventRecord", event.handle, self.handle)
        except CudaError:
            event.close()
            raise
        return event

    def wait(self, event: Event) -> None:
        """Make later work of this stream wait for the event."""
        event.before(self.handle)


class _Memory(_Owned):
    """`size` bytes at `pointer`, at first with undefined content."""

    ALLOCATE: ClassVar[str]

    def __init__(self, size_bytes: int) -> None:
        assert size_bytes > 0, f"expected a size above 0, got {size_bytes}"
        super().__init__(int(call(self.ALLOCATE, size_bytes)))
        self.size = size_bytes

    @property
    def pointer(self) -> int:
        return self.handle


@final
class DeviceBuffer(_Memory):
    """Memory on the device, aligned to 256 bytes."""

    ALLOCATE, FREE = "cudaMalloc", "cudaFree"


@final
class PinnedBuffer(_Memory):
    """CPU memory that is never swapped out: copies to and from it need no CPU, and the device reaches it at the same
    address."""

    ALLOCATE, FREE = "cudaMallocHost", "cudaFreeHost"

    def view(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """The first bytes as an array. Do not use it after `close()`, nor while queued work writes to it."""
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        assert needed <= self.size, f"expected at most {self.size} bytes, got {np.dtype(dtype)} {shape} of {needed}"
        return np.ndarray(shape, dtype, memoryview((ctypes.c_uint8 * needed).from_address(self.pointer)))


def copy_to_device(target: int, source: int, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes from the CPU. Both memories must live, and the source keep its content, until the
    stream is synchronised.

    The source should lie in a PinnedBuffer: CUDA copies other memory by way of its own, while the CPU waits.
    """
    _copy("cudaMemcpyHostToDevice", target, source, size, stream)


def copy_to_host(target: int, source: int, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes to the CPU, best to a PinnedBuffer. Both memories must live until the stream is
    synchronised; only then the target holds the data."""
    _copy("cudaMemcpyDeviceToHost", target, source, size, stream)


def copy_on_device(target: int, source: int, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes from device to device. Both memories must live until the stream is synchronised."""
    _copy("cudaMemcpyDeviceToDevice", target, source, size, stream)


def _copy(kind: str, target: int, source: int, size: int, stream: Stream) -> None:
    call("cudaMemcpyAsync", target, source, size, getattr(cudaMemcpyKind, kind), stream.handle)


@final
class Graph(_Owned):
    """Captured work that is launched as a whole. It keeps the addresses that it was captured with: that memory must
    outlive it."""

    FREE = "cudaGraphExecDestroy"

    @classmethod
    def capture(cls, stream: Stream, work: Callable[[], None]) -> Graph:
        """Capture what `work` queues in the stream, without running it. If `work` raises, the capture ends and the
        stream is as before.

        CUDA forbids allocating or synchronising in `work`, but only in this thread (capture mode "thread local"). In
        mode "global" any other thread that allocates meanwhile, for example to open another model, would fail, and
        break this capture too.

        Raises:
            CudaError: something in `work` cannot be captured.
        """
        mode = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:
            _abandon(stream)
            raise
        graph = call("cudaStreamEndCapture", stream.handle)
        try:
            # CUDA 11 and 12 changed this call in C; cuda-python 12 and 13 both take (graph, flags).
            return cls(int(call("cudaGraphInstantiate", graph, 0)))
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Queue the graph's work in the stream."""
        call("cudaGraphLaunch", self.handle, stream.handle)


def _abandon(stream: Stream) -> None:
    """End a capture that failed, without raising: the error that ended it is on its way."""
    with suppress(CudaError):
        graph = call("cudaStreamEndCapture", stream.handle)
        call("cudaGraphDestroy", graph)
