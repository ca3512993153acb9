"""Arrays shared by DLPack on a CUDA device: who uses one waits, in its own stream, for the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from standin_cuda import POISON, StandinCuda
from torch.utils.dlpack import from_dlpack as torch_from_dlpack

from runtimes.nvidia import cuda as _cuda
from runtimes.nvidia.dlpack import CUDA, DeviceArray, DeviceTensor, tensor_from_dlpack


def produced(values: NDArray[Any], source: _cuda.PinnedBuffer, stream: _cuda.Stream) -> DeviceArray:
    """An array on the device whose data is still on its way there."""
    memory = _cuda.DeviceBuffer(values.nbytes)
    source.view(values.dtype, values.shape)[...] = values
    _cuda.copy_to_device(memory.pointer, source.pointer, values.nbytes, stream)
    return DeviceArray(memory, values.shape, values.dtype.name, ready=stream.record())


def read(tensor: DeviceTensor, stream_handle: int, standin: StandinCuda) -> NDArray[Any]:
    """What a consumer that queues a kernel in its stream sees."""
    seen: list[NDArray[Any]] = []
    size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
    action = lambda: seen.append(standin.view(tensor.pointer, tensor.dtype, tensor.shape).copy())  # noqa: E731  # shorter than a function
    standin.enqueue(stream_handle, action, reads=[(tensor.pointer, size)])
    standin.cudaStreamSynchronize(stream_handle)
    return seen[0]


def test_the_consumers_stream_waits_for_the_data(standin: StandinCuda) -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    with _cuda.Stream() as producer, _cuda.Stream() as consumer, _cuda.PinnedBuffer(values.nbytes) as source:
        with produced(values, source, producer) as array:
            tensor = tensor_from_dlpack(array, consumer.handle)
            assert (tensor.device_type, tensor.device_index, tensor.on_device) == (CUDA, 0, True)
            np.testing.assert_array_equal(read(tensor, consumer.handle, standin), values)
        del tensor


@pytest.mark.parametrize(("stream", "handle"), [(None, 1), (1, 1), (2, 2)])
def test_the_default_streams_of_the_standard_wait_too(standin: StandinCuda, stream: int | None, handle: int) -> None:
    values = np.arange(6, dtype=np.float32)
    with (
        _cuda.Stream() as producer,
        _cuda.PinnedBuffer(values.nbytes) as source,
        produced(values, source, producer) as array,
    ):
        capsule, tensor = array.__dlpack__(stream=stream), tensor_from_dlpack(array, -1)
        np.testing.assert_array_equal(read(tensor, handle, standin), values)
        del capsule, tensor


def test_a_consumer_that_asks_for_no_waiting_gets_none(standin: StandinCuda) -> None:
    values = np.arange(6, dtype=np.float32)
    with _cuda.Stream() as producer, _cuda.Stream() as consumer, _cuda.PinnedBuffer(values.nbytes) as source:
        with produced(values, source, producer) as array:
            tensor = tensor_from_dlpack(array, -1)
            assert (read(tensor, consumer.handle, standin).view(np.uint8) == POISON).all()
        del tensor


def test_dropping_an_array_before_its_data_arrived_waits_for_it(standin: StandinCuda) -> None:
    values = np.arange(6, dtype=np.float32)
    with _cuda.Stream() as producer, _cuda.PinnedBuffer(values.nbytes) as source:
        produced(values, source, producer).close()
        assert len(standin.leaks()) == 2, "the stream and the pinned buffer"


def test_an_array_may_be_dropped_inside_a_capture(standin: StandinCuda) -> None:
    values = np.arange(6, dtype=np.float32)
    with _cuda.Stream() as producer, _cuda.Stream() as other, _cuda.PinnedBuffer(values.nbytes) as source:
        array = produced(values, source, producer)
        with _cuda.Graph.capture(other, array.close) as graph:
            graph.launch(other)
            other.synchronize()


@pytest.mark.gpu
def test_torch_on_a_gpu_shares_arrays_both_ways() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    values = np.arange(1 << 20, dtype=np.float32)
    with (
        _cuda.Stream() as stream,
        _cuda.PinnedBuffer(values.nbytes) as source,
        _cuda.PinnedBuffer(values.nbytes) as result,
    ):
        with produced(values, source, stream) as array:
            doubled = 2 * torch_from_dlpack(array)
        tensor = tensor_from_dlpack(doubled, stream.handle)
        _cuda.copy_to_host(result.pointer, tensor.pointer, values.nbytes, stream)
        stream.synchronize()
        np.testing.assert_array_equal(result.view("float32", values.shape), 2 * values)
