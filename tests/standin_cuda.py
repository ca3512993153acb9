"""A stand-in for `cuda.bindings.runtime`: a checker of contracts, not a claim that CUDA ran.

It makes visible on any machine what a GPU punishes only sometimes. Queued work does not run before its stream, or what
depends on it, is synchronised: who forgets that reads poison. What CUDA leaves undefined is an AssertionError: memory
freed under queued work, unknown addresses, sizes beyond an allocation, destroyed streams, unpaired captures, allocating
while capturing. Memory is real host memory, never reused. Errors that CUDA reports come from `fail`, or from running
out of `total_bytes`.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types
from numpy.typing import DTypeLike, NDArray

Region = tuple[int, int]
"""An address and a size in bytes."""
POISON = 0xFB
"""Large and negative as a float of any size and as a signed integer."""
ALIGNMENT = 256
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
DEVICE, HOST = "device", "pinned"
KINDS = {
    "HostToDevice": (HOST, DEVICE),
    "DeviceToHost": (DEVICE, HOST),
    "DeviceToDevice": (DEVICE, DEVICE),
    "HostToHost": (HOST, HOST),
}


@dataclass
class Allocation:
    """`kind` is DEVICE or HOST; `memory` stays when it is freed, so that its address is never given out again."""

    pointer: int
    size: int
    kind: str
    memory: NDArray[np.uint8]
    freed: bool = False


@dataclass
class Work:
    """Something queued in a stream, to run after `after`, which may be in another stream."""

    what: str
    action: Callable[[], None]
    reads: list[Region]
    writes: list[Region]
    after: tuple[StreamState, Work] | None = None
    done: bool = False

    @property
    def is_marker(self) -> bool:
        """Does it keep order only?"""
        return self.action is _nothing


@dataclass
class StreamState:
    """A stream's queue, and what it has captured if it captures."""

    handle: int
    queue: deque[Work] = field(default_factory=deque)
    captured: list[Work] | None = None
    thread: int = 0


@dataclass
class EventState:
    """Where the event was recorded last; an event of a capture has no such place."""

    place: tuple[StreamState, Work] | None = None
    of_capture: bool = False


@dataclass
class GraphState:
    """A captured graph, and once it is instantiated, what of it was launched last."""

    works: list[Work]
    instantiated: bool = False
    last: Work | None = None


def _nothing() -> None:
    """What an event and a wait do."""


def _call(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """A function of the CUDA runtime: (error, *outputs), each output None after an error; `fail` makes errors."""

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        @functools.wraps(function)
        def call(self: StandinCuda, *arguments: Any) -> tuple[Any, ...]:
            with self.lock:
                code = self.failures.pop(function.__name__, 0)
                if code and function.__name__ == "cudaStreamEndCapture":
                    self._stream(
                        arguments[0], "cudaStreamEndCapture"
                    ).captured = None  # a capture that fails has ended all the same
                result = None if code else function(self, *arguments)
                if isinstance(result, real.cudaError_t):
                    code = int(result)
                if code:
                    self.last_error = code
                    return (real.cudaError_t(code), *[None] * outputs)
                return (real.cudaError_t.cudaSuccess, *((result,) if outputs == 1 else result or ()))

        return call

    return decorate


class StandinCuda:
    """One device with `total_bytes` of memory; put it in place of `cuda_call.cudart`."""

    cudaError_t = real.cudaError_t
    cudaDeviceAttr = real.cudaDeviceAttr
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDisableTiming = real.cudaEventDisableTiming
    cudaGetErrorName = staticmethod(real.cudaGetErrorName)
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)

    def __init__(
        self, *, total_bytes: int = 1 << 30, compute_capability: tuple[int, int] = (8, 7), integrated: int = 1
    ) -> None:
        self.total_bytes = total_bytes
        self.attributes = {
            real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: compute_capability[0],
            real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: compute_capability[1],
            real.cudaDeviceAttr.cudaDevAttrIntegrated: integrated,
        }
        self.lock = threading.RLock()
        self.failures: dict[str, int] = {}
        self.last_error = 0
        self.allocations: dict[int, Allocation] = {}
        # Handles are never given out twice; those of what was destroyed stay, with None.
        self.streams: dict[int, StreamState | None] = {
            handle: StreamState(handle) for handle in (LEGACY_STREAM, PER_THREAD_STREAM)
        }
        self.events: dict[int, EventState | None] = {}
        self.graphs: dict[int, GraphState | None] = {}
        self.modes: dict[int, Any] = {}
        self.handles = iter(range(0x1000, 1 << 40, 0x10))

    # --- for tests ---

    def fail(self, call: str, code: int) -> None:
        """The next call of this name returns this error code and does nothing."""
        assert callable(getattr(self, call, None)), f"the stand-in has no {call}"
        self.failures[call] = code

    def leaks(self) -> list[str]:
        """Everything that was made and not yet destroyed, in words."""
        memory = [f"{each.size} bytes of {each.kind} memory" for each in self.allocations.values() if not each.freed]
        streams = [
            f"stream {handle:#x}"
            for handle, state in self.streams.items()
            if state and handle not in (LEGACY_STREAM, PER_THREAD_STREAM)
        ]
        events = [f"event {handle:#x}" for handle, event in self.events.items() if event]
        return memory + streams + events + [f"graph {handle:#x}" for handle, graph in self.graphs.items() if graph]

    def view(self, pointer: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Memory as an array, for the work of a fake engine to compute with."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        allocation = self._allocation((pointer, size), "a view")
        start = pointer - allocation.pointer
        return allocation.memory[start : start + size].view(dtype).reshape(shape)

    def enqueue(
        self, stream: int, action: Callable[[], None], *, reads: Iterable[Region] = (), writes: Iterable[Region] = ()
    ) -> None:
        """Queue a fake engine's work in a stream, or have it captured; `reads`, `writes`: regions (address, size)."""
        self._queue(self._stream(stream, "enqueue"), Work("a kernel", action, list(reads), list(writes)))

    # --- what is queued ---

    def _queue(self, stream: StreamState, work: Work) -> None:
        for region in work.reads + work.writes:
            self._allocation(region, work.what)
        if stream.captured is None:
            stream.queue.append(work)
        else:
            stream.captured.append(work)

    def _run(self, stream: StreamState, until: Work | None = None) -> None:
        """Run a stream's work, all or up to one; what it waits for in other streams runs first."""
        while stream.queue and not (until and until.done):
            work = stream.queue[0]
            if work.after:
                self._run(*work.after)
            work.action()
            work.done = True
            stream.queue.popleft()

    def _stream(self, handle: int, call: str) -> StreamState:
        assert handle != 0, f"{call} on the default stream, which waits for every other one"
        assert handle in self.streams, f"{call} on {handle:#x}, which is no stream"
        state = self.streams[handle]
        assert state is not None, f"{call} on a destroyed stream"
        return state

    def _event(self, handle: int, call: str) -> EventState:
        state = self.events.get(handle)
        assert state is not None, (
            f"{call} with {'a destroyed event' if handle in self.events else f'{handle:#x}, which is no event'}"
        )
        return state

    def _graph(self, handle: int, call: str, *, instantiated: bool) -> GraphState:
        state = self.graphs.get(int(handle))
        assert state is not None, (
            f"{call} with {'a destroyed graph' if int(handle) in self.graphs else f'{int(handle):#x}, which is no graph'}"
        )
        assert state.instantiated == instantiated, (
            f"{call} with a graph that is {'not ' if instantiated else ''}instantiated"
        )
        return state

    def _not_capturing(self, call: str) -> None:
        """Calls that CUDA forbids while the thread captures, unless it has relaxed its mode."""
        me = threading.get_ident()
        capturing = any(state and state.captured is not None and state.thread == me for state in self.streams.values())
        relaxed = self.modes.get(me) == real.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        assert relaxed or not capturing, f"{call} while this thread captures"

    # --- memory ---

    def _allocation(self, region: Region, what: str) -> Allocation:
        pointer, size = region
        for each in self.allocations.values():
            if each.pointer <= pointer < each.pointer + each.size:
                assert not each.freed, f"{what} uses freed {each.kind} memory at {pointer:#x}"
                end = each.pointer + each.size
                assert pointer + size <= end, (
                    f"{what} uses {size} bytes at {pointer:#x}, {pointer + size - end} more than were allocated"
                )
                return each
        raise AssertionError(f"{what} uses {pointer:#x}, which is no CUDA memory (memory of the CPU must be pinned)")

    def _allocated(self, size: int, kind: str, call: str) -> Any:
        self._not_capturing(call)
        if size > self._free_bytes():
            return real.cudaError_t.cudaErrorMemoryAllocation
        memory = np.full(size + ALIGNMENT, POISON, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        pointer = memory.ctypes.data + start
        self.allocations[pointer] = Allocation(pointer, size, kind, memory[start : start + size])
        return pointer

    def _freed(self, pointer: int, kind: str, call: str) -> None:
        self._not_capturing(call)
        allocation = self.allocations.get(pointer)
        assert allocation is not None, f"{call} of {pointer:#x}, which is no {kind} memory"
        assert allocation.kind == kind, f"{call} of {allocation.kind} memory"
        assert not allocation.freed, f"{call} of memory that is free already"
        for stream in filter(None, self.streams.values()):
            for work in (*stream.queue, *(stream.captured or ())):
                for start, size in work.reads + work.writes:
                    used = start < pointer + allocation.size and pointer < start + size
                    assert not used, f"{call} of memory that {work.what}, still queued, uses; synchronise first"
        allocation.freed = True
        allocation.memory[:] = POISON

    def _free_bytes(self) -> int:
        return self.total_bytes - sum(each.size for each in self.allocations.values() if not each.freed)

    @_call(1)
    def cudaMalloc(self, size: int) -> Any:
        return self._allocated(size, DEVICE, "cudaMalloc")

    @_call(1)
    def cudaMallocHost(self, size: int) -> Any:
        return self._allocated(size, HOST, "cudaMallocHost")

    @_call(0)
    def cudaFree(self, devPtr: int) -> None:
        self._freed(devPtr, DEVICE, "cudaFree")

    @_call(0)
    def cudaFreeHost(self, ptr: int) -> None:
        self._freed(ptr, HOST, "cudaFreeHost")

    @_call(0)
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
        source, target = KINDS[kind.name.removeprefix("cudaMemcpy")]
        for pointer, expected in ((src, source), (dst, target)):
            found = self._allocation((pointer, count), "cudaMemcpyAsync").kind
            assert found == expected, (
                f"cudaMemcpyAsync {kind.name} with {found} memory where {expected} memory is expected"
            )

        def action() -> None:
            self.view(dst, np.uint8, (count,))[:] = self.view(src, np.uint8, (count,))

        self._queue(self._stream(stream, "cudaMemcpyAsync"), Work("a copy", action, [(src, count)], [(dst, count)]))

    # --- the device ---

    @_call(1)
    def cudaGetDeviceCount(self) -> int:
        return 1

    @_call(0)
    def cudaSetDevice(self, device: int) -> Any:
        return None if device == 0 else real.cudaError_t.cudaErrorInvalidDevice

    @_call(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self._free_bytes(), self.total_bytes

    @_call(1)
    def cudaDriverGetVersion(self) -> int:
        return 12060

    @_call(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(name=b"stand-in".ljust(256, b"\0"))

    @_call(1)
    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> int:
        return self.attributes[attr]

    def cudaGetLastError(self) -> tuple[Any]:
        code, self.last_error = self.last_error, 0
        return (real.cudaError_t(code),)

    # --- streams and events ---

    @_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == real.cudaStreamNonBlocking, "a stream that waits for the default stream"
        handle = next(self.handles)
        self.streams[handle] = StreamState(handle)
        return handle

    @_call(0)
    def cudaStreamSynchronize(self, stream: int) -> None:
        state = self._stream(stream, "cudaStreamSynchronize")
        assert state.captured is None, "cudaStreamSynchronize on a stream that captures"
        self._run(state)

    @_call(0)
    def cudaStreamDestroy(self, stream: int) -> None:
        state = self._stream(stream, "cudaStreamDestroy")
        assert state.captured is None, "cudaStreamDestroy on a stream that captures"
        assert all(work.is_marker for work in state.queue), (
            "cudaStreamDestroy on a stream with queued work; synchronise first"
        )
        self.streams[stream] = None

    @_call(0)
    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        waiting, awaited = self._stream(stream, "cudaStreamWaitEvent"), self._event(event, "cudaStreamWaitEvent")
        capturing = waiting.captured is not None
        assert capturing or not awaited.of_capture, "a stream that does not capture waits for an event of one that does"
        assert awaited.of_capture or not capturing, "a stream that captures waits for an event of one that does not"
        self._queue(waiting, Work("a wait", _nothing, [], [], after=awaited.place))

    @_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> int:
        handle = next(self.handles)
        self.events[handle] = EventState()
        return handle

    @_call(0)
    def cudaEventRecord(self, event: int, stream: int) -> None:
        state, recorded = self._stream(stream, "cudaEventRecord"), self._event(event, "cudaEventRecord")
        work = Work("an event", _nothing, [], [])
        self._queue(state, work)
        recorded.of_capture = state.captured is not None
        recorded.place = None if recorded.of_capture else (state, work)

    @_call(0)
    def cudaEventSynchronize(self, event: int) -> None:
        recorded = self._event(event, "cudaEventSynchronize")
        self._not_capturing("cudaEventSynchronize")
        assert not recorded.of_capture, "cudaEventSynchronize with an event of a capture"
        if recorded.place:
            self._run(*recorded.place)

    @_call(0)
    def cudaEventDestroy(self, event: int) -> None:
        self._event(event, "cudaEventDestroy")
        self.events[event] = None

    # --- graphs ---

    @_call(1)
    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> Any:
        before = self.modes.get(threading.get_ident(), real.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
        self.modes[threading.get_ident()] = mode
        return before

    @_call(0)
    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        state = self._stream(stream, "cudaStreamBeginCapture")
        assert stream not in (LEGACY_STREAM, PER_THREAD_STREAM), "cudaStreamBeginCapture on a default stream"
        assert state.captured is None, "cudaStreamBeginCapture on a stream that captures already"
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal, (
            f"{mode.name}: the stand-in checks thread-local captures only"
        )
        state.captured, state.thread = [], threading.get_ident()

    @_call(1)
    def cudaStreamEndCapture(self, stream: int) -> Any:
        state = self._stream(stream, "cudaStreamEndCapture")
        assert state.captured is not None, "cudaStreamEndCapture on a stream that does not capture"
        assert state.thread == threading.get_ident(), "cudaStreamEndCapture in another thread than began it"
        works, state.captured = state.captured, None
        return self._new_graph(works, instantiated=False)

    @_call(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._new_graph(self._graph(graph, "cudaGraphInstantiate", instantiated=False).works, instantiated=True)

    def _new_graph(self, works: list[Work], *, instantiated: bool) -> int:
        handle = next(self.handles)
        self.graphs[handle] = GraphState(works, instantiated)
        return handle

    @_call(0)
    def cudaGraphLaunch(self, graphExec: int, stream: int) -> None:
        graph, state = (
            self._graph(graphExec, "cudaGraphLaunch", instantiated=True),
            self._stream(stream, "cudaGraphLaunch"),
        )
        for each in graph.works:
            graph.last = Work(f"{each.what} of a graph", each.action, each.reads, each.writes)
            self._queue(state, graph.last)

    @_call(0)
    def cudaGraphDestroy(self, graph: Any) -> None:
        self._graph(graph, "cudaGraphDestroy", instantiated=False)
        self.graphs[graph] = None

    @_call(0)
    def cudaGraphExecDestroy(self, graphExec: int) -> None:
        graph = self._graph(graphExec, "cudaGraphExecDestroy", instantiated=True)
        assert graph.last is None or graph.last.done, (
            "cudaGraphExecDestroy of a graph that is still queued; synchronise first"
        )
        self.graphs[graphExec] = None
