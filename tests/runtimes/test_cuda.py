"""Streams, buffers and graphs, on a checker of their contract and, where there is a GPU, on CUDA itself."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as real  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types
from numpy.typing import NDArray
from standin_cuda import POISON, StandinCuda

from runtimes.errors import BackendUnavailable
from runtimes.nvidia import cuda as _cuda
from runtimes.nvidia.cuda_call import CudaError


@pytest.fixture(params=["stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "stand-in":
        request.getfixturevalue("standin")
    else:
        try:
            _cuda.device()
        except CudaError as error:
            pytest.skip(str(error))
    return _cuda


class Pair:
    """Memory on the device and, pinned, on the CPU, both of `values`' size; the pinned one holds them."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.size = values.nbytes
        self.device, self.pinned = _cuda.DeviceBuffer(self.size), _cuda.PinnedBuffer(self.size)
        self.array = self.pinned.view(values.dtype, values.shape)
        self.array[...] = values

    def upload(self, stream: _cuda.Stream) -> None:
        _cuda.copy_to_device(self.device.pointer, self.pinned.pointer, self.size, stream)

    def download(self, stream: _cuda.Stream) -> None:
        _cuda.copy_to_host(self.pinned.pointer, self.device.pointer, self.size, stream)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self.pinned.close()


def numbers(count: int = 12) -> NDArray[np.float32]:
    return np.arange(1, count + 1, dtype=np.float32)


# --- on both ---


def test_a_device_is_described(cuda: ModuleType) -> None:
    found = cuda.device()
    assert re.fullmatch(r"sm\d{2,3}", found.target)
    assert found.name.isprintable()
    assert found.name
    assert 0 < found.free_bytes <= found.total_bytes
    assert re.fullmatch(r"\d+\.\d+", found.driver)


def test_a_device_that_is_not_there_is_refused(cuda: ModuleType) -> None:
    with pytest.raises(CudaError, match="cudaSetDevice: cudaErrorInvalidDevice") as caught:
        cuda.device(1000)
    assert caught.value.code == 101


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_data_comes_back_from_the_device(cuda: ModuleType, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    with cuda.Stream() as stream, Pair(values) as there, Pair(np.zeros_like(values)) as back:
        there.upload(stream)
        cuda.copy_on_device(back.device.pointer, there.device.pointer, there.size, stream)
        back.download(stream)
        stream.synchronize()
        assert back.array.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(back.array, values)


def test_a_pinned_view_is_the_memory_and_cannot_exceed_it(cuda: ModuleType) -> None:
    with cuda.PinnedBuffer(16) as buffer:
        buffer.view("uint8", (16,))[:] = 0
        buffer.view("float32", (2, 2))[1, 1] = 1.0
        assert buffer.view("float16", (8,))[7] == np.float16(1.875)  # the upper half of float32's 1.0, 0x3f80
        assert buffer.view("uint8", (0,)).size == 0
        with pytest.raises(AssertionError, match="at most 16 bytes, got float32 \\(5,\\) of 20"):
            buffer.view("float32", (5,))


def test_memory_is_aligned_for_every_tensor(cuda: ModuleType) -> None:
    with cuda.DeviceBuffer(1) as first, cuda.DeviceBuffer(1) as second:
        assert first.pointer % 256 == second.pointer % 256 == 0
        assert first.size == 1


def test_a_stream_waits_for_an_event_of_another(cuda: ModuleType) -> None:
    values = numbers(1 << 20)
    with (
        cuda.Stream() as producer,
        cuda.Stream() as consumer,
        Pair(values) as pair,
        cuda.PinnedBuffer(values.nbytes) as result,
    ):
        pair.upload(producer)
        with producer.record() as event:
            consumer.wait(event)
        cuda.copy_to_host(result.pointer, pair.device.pointer, pair.size, consumer)
        consumer.synchronize()
        np.testing.assert_array_equal(result.view("float32", values.shape), values)
        producer.synchronize()


def test_an_event_is_waited_for_on_the_cpu(cuda: ModuleType) -> None:
    with cuda.Stream() as stream, Pair(numbers()) as pair, cuda.PinnedBuffer(pair.size) as result:
        pair.upload(stream)
        cuda.copy_to_host(result.pointer, pair.device.pointer, pair.size, stream)
        with stream.record() as event:
            event.synchronize()
        np.testing.assert_array_equal(result.view("float32", (12,)), numbers())
        stream.synchronize()


def test_a_graph_runs_on_the_data_of_each_launch(cuda: ModuleType) -> None:
    with cuda.Stream() as stream, Pair(numbers()) as source, Pair(np.zeros(12, np.float32)) as target:

        def work() -> None:
            source.upload(stream)
            cuda.copy_on_device(target.device.pointer, source.device.pointer, source.size, stream)
            target.download(stream)

        with cuda.Graph.capture(stream, work) as graph:
            stream.synchronize()
            assert not target.array.any(), "capturing runs nothing"
            for factor in (1, 2, 3):
                source.array[:] = factor * numbers()
                graph.launch(stream)
                stream.synchronize()
                np.testing.assert_array_equal(target.array, factor * numbers())


def test_work_that_fails_in_a_capture_leaves_the_stream_usable(cuda: ModuleType) -> None:
    with cuda.Stream() as stream, Pair(numbers()) as pair:

        def work() -> None:
            pair.upload(stream)
            raise KeyError("from the work")

        with pytest.raises(KeyError, match="from the work"):
            cuda.Graph.capture(stream, work)
        pair.upload(stream)
        pair.array[:] = numbers()
        pair.download(stream)
        stream.synchronize()
        np.testing.assert_array_equal(pair.array, numbers())


def test_closing_is_allowed_inside_a_capture(cuda: ModuleType) -> None:
    """As happens when another library's garbage is collected then."""
    bystander = cuda.DeviceBuffer(64)
    with cuda.Stream() as stream, Pair(numbers()) as pair:

        def work() -> None:
            pair.upload(stream)
            bystander.close()

        with cuda.Graph.capture(stream, work) as graph:
            graph.launch(stream)
            stream.synchronize()


def test_closing_twice_is_closing_once(cuda: ModuleType) -> None:
    stream = cuda.Stream()
    owned = [
        cuda.Graph.capture(stream, lambda: None),
        stream.record(),
        cuda.DeviceBuffer(8),
        cuda.PinnedBuffer(8),
        stream,
    ]
    for each in owned:
        each.close()
        each.close()
        with pytest.raises(AssertionError, match=f"this {type(each).__name__} is closed"):
            _ = each.handle


def test_a_buffer_of_no_size_is_a_mistake(cuda: ModuleType) -> None:
    for kind in (cuda.DeviceBuffer, cuda.PinnedBuffer):
        with pytest.raises(AssertionError, match="above 0, got 0"):
            kind(0)


def test_more_memory_than_there_is_is_refused(cuda: ModuleType) -> None:
    with pytest.raises(
        CudaError,
        match=r"cudaMalloc: cudaErrorMemoryAllocation \(2\): out of memory; close other programs .* smaller batch",
    ):
        cuda.DeviceBuffer(1 << 50)
    with cuda.DeviceBuffer(8):
        pass


# --- errors ---


@pytest.mark.parametrize(
    ("code", "name", "remedy"),
    [
        (35, "cudaErrorInsufficientDriver", "update the NVIDIA driver, or use --backend onnxruntime"),
        (
            100,
            "cudaErrorNoDevice",
            "check that nvidia-smi lists a GPU (a container needs --gpus all), or use --backend onnxruntime",
        ),
        (2, "cudaErrorMemoryAllocation", "close other programs that use the GPU, or take a smaller batch"),
        (700, "cudaErrorIllegalAddress", None),
    ],
)
def test_errors_name_the_call_the_code_and_a_remedy(
    standin: StandinCuda, code: int, name: str, remedy: str | None
) -> None:
    standin.fail("cudaGetDeviceCount", code)
    with pytest.raises(CudaError) as caught:
        _cuda.device()
    text = real.cudaGetErrorString(real.cudaError_t(code))[1].decode()
    assert str(caught.value) == f"cudaGetDeviceCount: {name} ({code}): {text}" + (f"; {remedy}" if remedy else "")
    assert (caught.value.code, caught.value.name, caught.value.exit_code) == (code, name, BackendUnavailable.exit_code)


def test_an_error_is_not_left_for_another_library_to_find(standin: StandinCuda) -> None:
    standin.fail("cudaMalloc", 2)
    with pytest.raises(CudaError):
        _cuda.DeviceBuffer(8)
    assert int(standin.cudaGetLastError()[0]) == 0


def test_without_a_driver_the_real_call_says_so() -> None:
    try:
        count = int(real.cudaGetDeviceCount()[0])
    except RuntimeError:  # cuda-python 12
        count = 35
    if count != 35:
        pytest.skip("there is a driver")
    with pytest.raises(
        CudaError,
        match=r"cudaErrorInsufficientDriver \(35\): .*; update the NVIDIA driver, or use --backend onnxruntime",
    ) as caught:
        _cuda.device()
    assert caught.value.code == 35


def test_a_driver_library_that_cannot_be_loaded_is_a_missing_driver(
    standin: StandinCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # what cuda-python 12.8 does

    monkeypatch.setattr(standin, "cudaGetDeviceCount", raises)
    with pytest.raises(CudaError, match=r"\(35\): Failed to dlopen libcuda.so.1; update the NVIDIA driver"):
        _cuda.device()


def test_a_missing_package_is_named_for_the_plug_in_loader() -> None:
    code = """if True:
        import sys
        sys.modules["cuda.bindings"] = None
        try:
            import runtimes.nvidia.cuda
        except ImportError as error:
            print(error.name)
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.startswith(
        "cuda"
    )


def test_what_was_described_is_what_the_driver_said(standin: StandinCuda) -> None:
    with _cuda.DeviceBuffer(1 << 20):
        assert _cuda.device() == _cuda.Device(0, "stand-in", (8, 7), 1 << 30, (1 << 30) - (1 << 20), True, "12.6")
    assert _cuda.device().target == "sm87"


def test_a_failed_record_leaves_no_event(standin: StandinCuda) -> None:
    with _cuda.Stream() as stream:
        standin.fail("cudaEventRecord", 700)
        with pytest.raises(CudaError, match="cudaEventRecord"):
            stream.record()


@pytest.mark.parametrize(
    ("call", "code"), [("cudaStreamBeginCapture", 900), ("cudaStreamEndCapture", 901), ("cudaGraphInstantiate", 2)]
)
def test_a_capture_that_fails_leaves_nothing_and_a_usable_stream(standin: StandinCuda, call: str, code: int) -> None:
    with _cuda.Stream() as stream, Pair(numbers()) as pair:
        standin.fail(call, code)
        with pytest.raises(CudaError, match=call):
            _cuda.Graph.capture(stream, lambda: pair.upload(stream))
        with _cuda.Graph.capture(stream, lambda: pair.upload(stream)) as graph:
            graph.launch(stream)
            stream.synchronize()


def test_the_error_of_the_work_outlives_one_of_ending_the_capture(standin: StandinCuda) -> None:
    def work() -> None:
        standin.fail("cudaStreamEndCapture", 901)
        raise KeyError("the cause")

    with _cuda.Stream() as stream, pytest.raises(KeyError, match="the cause"):
        _cuda.Graph.capture(stream, work)


def test_an_error_on_closing_is_raised_but_hides_no_other(standin: StandinCuda) -> None:
    def closed(error: Exception | None) -> None:
        with _cuda.DeviceBuffer(8) as buffer:
            pointers.append(buffer.pointer)
            standin.fail("cudaFree", 700)
            if error:
                raise error

    pointers: list[int] = []
    with pytest.raises(CudaError, match="cudaFree"):
        closed(None)
    with pytest.raises(KeyError, match="first"):
        closed(KeyError("first"))
    for pointer in pointers:
        standin.cudaFree(pointer)


def test_closing_inside_a_capture_allows_nothing_else(standin: StandinCuda) -> None:
    def work() -> None:
        bystander.close()
        _cuda.DeviceBuffer(8)

    bystander = _cuda.DeviceBuffer(8)
    with _cuda.Stream() as stream, pytest.raises(AssertionError, match="cudaMalloc while this thread captures"):
        _cuda.Graph.capture(stream, work)


def test_what_is_dropped_open_says_so_and_is_not_freed(standin: StandinCuda) -> None:
    buffer = _cuda.DeviceBuffer(8)
    pointer = buffer.pointer
    with pytest.warns(ResourceWarning, match="a DeviceBuffer was never closed"):
        del buffer
    assert standin.leaks() == ["8 bytes of device memory"]
    standin.cudaFree(pointer)


# --- the stand-in: it must catch what it is for ---


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
