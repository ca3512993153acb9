"""Streams, buffers and graphs, on a checker of their contract and, where there is a GPU, on CUDA itself."""

from __future__ import annotations

import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from cuda.bindings import runtime as real  # type: ignore[import-untyped]  # NVIDIA's bindings ship no types
from cuda_memory import Pair, numbers
from standin_cuda import StandinCuda

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
    standin: StandinCuda, monkeypatch: pytest.MonkeyPatch, code: int, name: str, remedy: str | None
) -> None:
    monkeypatch.setattr(_cuda, "driver_is_here", lambda: True)
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
        match=r"cudaErrorInsufficientDriver \(35\): (there is no|Failed to).*; run on a machine with an NVIDIA GPU and",
    ) as caught:
        _cuda.device()
    assert caught.value.code == 35


def test_a_driver_library_that_cannot_be_loaded_is_a_missing_driver(
    standin: StandinCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # what cuda-python 12.8 does

    monkeypatch.setattr(standin, "cudaGetDeviceCount", raises)
    with pytest.raises(CudaError, match=r"\(35\): Failed to dlopen libcuda.so.1; run on a machine with an NVIDIA GPU"):
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
