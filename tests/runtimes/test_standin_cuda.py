"""The stand-in for CUDA catches what it is for: each violation of the contract of streams, memory and graphs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from cuda.bindings import runtime as real  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types
from cuda_memory import Pair, numbers
from standin_cuda import POISON, StandinCuda

from runtimes.nvidia import cuda as _cuda


def test_the_standin_has_the_bindings_own_signatures() -> None:
    for name in (
        name
        for name in vars(StandinCuda)
        if name.startswith("cuda") and callable(getattr(real, name)) and not isinstance(getattr(real, name), type)
    ):
        if isinstance(vars(StandinCuda)[name], staticmethod):
            continue  # the real one
        declared = re.match(rf"{name}\((.*)\)", getattr(real, name).__doc__ or "")
        assert declared, name
        expected = [part.split(":")[0].split()[-1] for part in declared[1].split(",") if part.strip()]
        function = getattr(vars(StandinCuda)[name], "__wrapped__", vars(StandinCuda)[name])
        assert list(function.__code__.co_varnames[1 : function.__code__.co_argcount]) == expected, name


def test_forgetting_to_synchronise_reads_poison(standin: StandinCuda) -> None:
    with _cuda.Stream() as stream, Pair(numbers()) as pair, _cuda.PinnedBuffer(pair.size) as result:
        pair.upload(stream)
        _cuda.copy_to_host(result.pointer, pair.device.pointer, pair.size, stream)
        assert (result.view("uint8", (pair.size,)) == POISON).all()
        stream.synchronize()
        np.testing.assert_array_equal(result.view("float32", (12,)), numbers())


def test_forgetting_to_wait_for_another_stream_reads_poison(standin: StandinCuda) -> None:
    with (
        _cuda.Stream() as producer,
        _cuda.Stream() as consumer,
        Pair(numbers()) as pair,
        _cuda.PinnedBuffer(pair.size) as result,
    ):
        pair.upload(producer)
        _cuda.copy_to_host(result.pointer, pair.device.pointer, pair.size, consumer)
        consumer.synchronize()
        assert (result.view("uint8", (pair.size,)) == POISON).all()
        producer.synchronize()


def test_an_event_covers_what_was_queued_before_it_alone(standin: StandinCuda) -> None:
    order: list[str] = []
    with _cuda.Stream() as first, _cuda.Stream() as second:
        standin.enqueue(first.handle, lambda: order.append("before"))
        event = first.record()
        standin.enqueue(first.handle, lambda: order.append("after"))
        second.wait(event)
        standin.enqueue(second.handle, lambda: order.append("second"))
        event.close()
        second.synchronize()
        assert order == ["before", "second"]
        first.synchronize()
        assert order == ["before", "second", "after"]


def test_a_kernel_reads_and_writes_when_it_runs(standin: StandinCuda) -> None:
    with _cuda.Stream() as stream, Pair(numbers()) as pair:

        def double() -> None:
            standin.view(pair.device.pointer, "float32", (12,))[:] *= 2

        pair.upload(stream)
        standin.enqueue(
            stream.handle, double, reads=[(pair.device.pointer, pair.size)], writes=[(pair.device.pointer, pair.size)]
        )
        pair.download(stream)
        stream.synchronize()
        np.testing.assert_array_equal(pair.array, 2 * numbers())


HOST_TO_DEVICE, DEVICE_TO_HOST = real.cudaMemcpyKind.cudaMemcpyHostToDevice, real.cudaMemcpyKind.cudaMemcpyDeviceToHost
RELAXED = real.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
THREAD_LOCAL = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


@dataclass
class Bench:
    """The checker, with a stream, 64 bytes of each memory, and a graph of one copy between them."""

    checker: StandinCuda
    stream: int
    memory: int
    pinned: int
    graph: int
    launchable: int

    @classmethod
    def made(cls) -> Bench:
        checker = StandinCuda()
        stream, memory = checker.cudaStreamCreateWithFlags(1)[1], checker.cudaMalloc(64)[1]
        pinned = checker.cudaMallocHost(64)[1]
        bench = cls(checker, stream, memory, pinned, 0, 0)
        bench.begin()
        bench.copy()
        bench.graph = checker.cudaStreamEndCapture(stream)[1]
        bench.launchable = checker.cudaGraphInstantiate(bench.graph, 0)[1]
        return bench

    def copy(self, *, size: int = 64, offset: int = 0) -> object:
        return self.checker.cudaMemcpyAsync(self.memory + offset, self.pinned, size, HOST_TO_DEVICE, self.stream)

    def begin(self) -> object:
        return self.checker.cudaStreamBeginCapture(self.stream, THREAD_LOCAL)

    def event(self) -> int:
        event: int = self.checker.cudaEventCreateWithFlags(2)[1]
        self.checker.cudaEventRecord(event, self.stream)
        return event

    def launch(self) -> object:
        return self.checker.cudaGraphLaunch(self.launchable, self.stream)


VIOLATIONS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "freed while queued": (
        "cudaFree of memory that a copy, still queued",
        lambda b: (b.copy(), b.checker.cudaFree(b.memory)),
    ),
    "pinned, freed while queued": (
        "cudaFreeHost of memory that a copy",
        lambda b: (b.copy(), b.checker.cudaFreeHost(b.pinned)),
    ),
    "freed while a graph is queued": (
        "that a copy of a graph, still queued",
        lambda b: (b.launch(), b.checker.cudaFree(b.memory)),
    ),
    "freed twice": ("free already", lambda b: (b.checker.cudaFree(b.memory), b.checker.cudaFree(b.memory))),
    "freed by the wrong call": ("cudaFreeHost of device memory", lambda b: b.checker.cudaFreeHost(b.memory)),
    "freed inside": ("which is no device memory", lambda b: b.checker.cudaFree(b.memory + 8)),
    "used after free": ("uses freed device memory", lambda b: (b.checker.cudaFree(b.memory), b.copy())),
    "graph of freed memory": ("uses freed device memory", lambda b: (b.checker.cudaFree(b.memory), b.launch())),
    "beyond the end": ("uses 65 bytes at .*, 1 more than were allocated", lambda b: b.copy(size=65)),
    "beyond the end, from inside": ("32 more than were allocated", lambda b: b.copy(offset=32)),
    "kernel beyond the end": (
        "a kernel uses 65 bytes",
        lambda b: b.checker.enqueue(b.stream, lambda: None, writes=[(b.memory, 65)]),
    ),
    "unknown address": (
        "which is no CUDA memory",
        lambda b: b.checker.cudaMemcpyAsync(4096, b.pinned, 8, HOST_TO_DEVICE, b.stream),
    ),
    "wrong direction": (
        "pinned memory where device",
        lambda b: b.checker.cudaMemcpyAsync(b.memory, b.pinned, 8, DEVICE_TO_HOST, b.stream),
    ),
    "default stream": ("on the default stream", lambda b: b.checker.cudaStreamSynchronize(0)),
    "no stream": ("0x7, which is no stream", lambda b: b.checker.cudaStreamSynchronize(7)),
    "destroyed stream": ("on a destroyed stream", lambda b: (b.checker.cudaStreamDestroy(b.stream), b.copy())),
    "stream destroyed with work": ("with queued work", lambda b: (b.copy(), b.checker.cudaStreamDestroy(b.stream))),
    "destroyed event": (
        "a destroyed event",
        lambda b: [b.checker.cudaEventDestroy(event) for event in [b.event()] * 2],
    ),
    "synchronised capture": (
        "on a stream that captures",
        lambda b: (b.begin(), b.checker.cudaStreamSynchronize(b.stream)),
    ),
    "allocated in a capture": ("cudaMalloc while this thread captures", lambda b: (b.begin(), b.checker.cudaMalloc(8))),
    "freed in a capture": ("cudaFree while this thread captures", lambda b: (b.begin(), b.checker.cudaFree(b.memory))),
    "captured twice": ("captures already", lambda b: (b.begin(), b.begin())),
    "capture not begun": ("does not capture", lambda b: b.checker.cudaStreamEndCapture(b.stream)),
    "stream destroyed in a capture": (
        "on a stream that captures",
        lambda b: (b.begin(), b.checker.cudaStreamDestroy(b.stream)),
    ),
    "event from outside a capture": (
        "waits for an event of one that does not",
        lambda b: [(b.begin(), b.checker.cudaStreamWaitEvent(b.stream, event, 0)) for event in [b.event()]],
    ),
    "event of a capture": (
        "an event of a capture",
        lambda b: (
            b.begin(),
            b.checker.modes.update({threading.get_ident(): RELAXED}),
            b.checker.cudaEventSynchronize(b.event()),
        ),
    ),
    "graph not instantiated": ("not instantiated", lambda b: b.checker.cudaGraphLaunch(b.graph, b.stream)),
    "graph destroyed": ("a destroyed graph", lambda b: (b.checker.cudaGraphExecDestroy(b.launchable), b.launch())),
    "graph destroyed while queued": (
        "still queued",
        lambda b: (b.launch(), b.checker.cudaGraphExecDestroy(b.launchable)),
    ),
}


@pytest.mark.parametrize(("text", "violate"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_the_standin_catches(text: str, violate: Callable[[Bench], object]) -> None:
    with pytest.raises(AssertionError, match=text):
        violate(Bench.made())


def test_the_standin_counts_what_is_left() -> None:
    bench = Bench.made()
    bench.event()
    assert [leak.split(" 0x")[0] for leak in bench.checker.leaks()] == [
        "64 bytes of device memory",
        "64 bytes of pinned memory",
        "stream",
        "event",
        "graph",
        "graph",
    ]
