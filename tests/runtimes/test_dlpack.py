"""Arrays are taken in and handed out by DLPack, with numpy and PyTorch on the CPU."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from standin_cuda import POISON
from torch.utils.dlpack import from_dlpack as torch_from_dlpack

from runtimes.errors import BadInput
from runtimes.nvidia.dlpack import CPU, CUDA, CUDA_HOST, DeviceArray, DeviceTensor, tensor_from_dlpack
from runtimes.nvidia.dlpack_capsule import tensor_from_capsule

CPU_DEVICE = (CPU, 0)


class HostMemory:
    """CPU memory that keeps a diary of being freed."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values.copy()
        self.closed = 0

    @property
    def pointer(self) -> int:
        return int(self.values.ctypes.data)

    def close(self) -> None:
        self.closed += 1
        self.values.view(np.uint8)[...] = POISON


class Producer:
    """A library's array, or a capsule, that says it lies elsewhere, or answers like an old or a strange library."""

    def __init__(
        self, array: Any, *, device: tuple[int, int] = CPU_DEVICE, error: Exception | None = None, old: bool = False
    ) -> None:
        self.array = array
        self.device = device
        self.error = error
        self.old = old
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **arguments: Any) -> object:
        if self.old and "max_version" in arguments:
            raise TypeError("unexpected keyword argument 'max_version'")
        if self.error:
            raise self.error
        self.asked.append(arguments)
        return self.array.__dlpack__() if hasattr(self.array, "__dlpack__") else self.array


def values_of(tensor: DeviceTensor) -> NDArray[Any]:
    """The content of an imported tensor that lies on the CPU; the bits, of a bfloat16."""
    dtype = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
    count = int(np.prod(tensor.shape))
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(tensor.pointer)
    return np.ndarray(tensor.shape, dtype, memoryview(memory)).copy()


def handed_out(dtype: str = "float32") -> tuple[HostMemory, DeviceArray, NDArray[Any]]:
    values = np.arange(6).reshape(2, 3).astype("uint16" if dtype == "bfloat16" else dtype)
    memory = HostMemory(values)
    return memory, DeviceArray(memory, values.shape, dtype, device=CPU_DEVICE), values


DTYPES = ["bool", "float16", "float32", "float64", "int8", "int32", "int64", "uint8"]


# --- taken in ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_array_is_taken_in_where_it_lies(library: str, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = tensor_from_dlpack(values if library == "numpy" else torch.from_numpy(values), None)
    assert tensor == DeviceTensor(values.ctypes.data, (2, 3, 4), dtype, CPU, 0, None)
    assert not tensor.on_device
    np.testing.assert_array_equal(values_of(tensor), values)


def test_a_bfloat16_is_named_so() -> None:
    tensor = tensor_from_dlpack(torch.tensor([1.0, -2.0], dtype=torch.bfloat16), None)
    assert tensor.dtype == "bfloat16"
    np.testing.assert_array_equal(values_of(tensor), np.array([0x3F80, 0xC000], np.uint16))


def test_a_part_of_an_array_begins_where_it_begins() -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(values_of(tensor_from_dlpack(whole[2:], None)), whole[2:].numpy())


def test_an_offset_in_bytes_is_added() -> None:
    values = np.arange(4.0)
    capsule = values[:3].__dlpack__()
    tensor_from_capsule(capsule).byte_offset = values.itemsize

    np.testing.assert_array_equal(values_of(tensor_from_dlpack(Producer(capsule), None)), values[1:])


def test_a_scalar_and_an_empty_array_are_row_major() -> None:
    assert tensor_from_dlpack(torch.tensor(3.0), None).shape == ()
    assert tensor_from_dlpack(torch.empty(0, 3), None).shape == (0, 3)
    assert tensor_from_dlpack(torch.empty(3, 0).T, None).shape == (0, 3)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1, 3)])
def test_strides_of_a_dimension_of_one_mean_nothing(shape: tuple[int, ...]) -> None:
    tensor = torch.empty(shape).as_strided(shape, tuple(77 if size == 1 else 1 for size in shape))
    assert tensor_from_dlpack(tensor, None).shape == shape


def test_what_is_taken_in_lives_as_long_as_it_is_held() -> None:
    values = np.arange(1000.0)
    gone = weakref.ref(values)
    expected = values.copy()
    tensor = tensor_from_dlpack(values, None)
    del values
    gc.collect()
    assert gone() is not None
    np.testing.assert_array_equal(values_of(tensor), expected)
    del tensor
    gc.collect()
    assert gone() is None, "the producer was not told"


def test_an_array_that_is_read_only_can_be_taken_in() -> None:
    values = np.arange(3.0)
    values.flags.writeable = False
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("this numpy speaks no DLPack 1.0, which can say read-only")
    np.testing.assert_array_equal(values_of(tensor_from_dlpack(values, None)), values)


@pytest.mark.parametrize("old", [False, True])
def test_a_producer_is_given_our_stream_for_cuda_and_none_for_the_cpu(old: bool) -> None:
    at_cuda, at_cpu, pinned = (Producer(np.zeros(3), device=(kind, 1), old=old) for kind in (CUDA, CPU, CUDA_HOST))
    tensor_from_dlpack(at_cuda, 0x1230)
    tensor_from_dlpack(at_cpu, 0x1230)
    tensor_from_dlpack(pinned, 0x1230)
    version = {} if old else {"max_version": (1, 1)}
    assert at_cuda.asked == [{"stream": 0x1230, **version}]
    assert at_cpu.asked == pinned.asked == [version]


@pytest.mark.parametrize(
    ("tensor", "stream", "text"),
    [
        ([1.0, 2.0], None, "expected an array that speaks DLPack, got list; pass one of numpy"),
        (torch.zeros(2, 3).T, None, r"expected a row-major array, got shape \(3, 2\) with strides \(1, 3\); call"),
        (torch.zeros(2, 3)[:, ::2], None, r"got shape \(2, 2\) with strides \(3, 2\)"),
        (np.zeros((4, 3))[::-1], None, r"with strides \(-3, 1\)"),
        (
            np.zeros(3, np.complex64),
            None,
            "expected one of int8, .*, bfloat16, bool, got DLPack type 5 of 64 bits, 1 lanes",
        ),
        (torch.zeros(3, requires_grad=True), None, "Tensor cannot be shared by DLPack: .*grad"),
        (np.array(["text"]), None, "ndarray cannot be shared by DLPack"),
        (Producer(np.zeros(3), error=RuntimeError("one\ntwo")), None, "Producer cannot be shared by DLPack: one$"),
        (Producer(np.zeros(3), error=RuntimeError()), None, "Producer cannot be shared by DLPack: RuntimeError$"),
        (
            Producer(np.zeros(3), device=(CUDA, 1)),
            None,
            r"expected an array on the CPU, got one on a CUDA device \(1\); copy it to the CPU",
        ),
        (
            Producer(np.zeros(3), device=(10, 0)),
            7,
            "expected an array on the CPU or a CUDA device, got DLPack device type 10",
        ),
    ],
)
def test_what_cannot_be_taken_in_is_refused_in_one_line(tensor: object, stream: int | None, text: str) -> None:
    with pytest.raises(BadInput, match=text) as caught:
        tensor_from_dlpack(tensor, stream)
    assert len(str(caught.value).splitlines()) == 1


def test_a_capsule_that_another_consumer_took_is_refused() -> None:
    capsule = np.zeros(3).__dlpack__()
    torch_from_dlpack(capsule)

    with pytest.raises(BadInput, match="expected a DLPack capsule, got one named b'used_dltensor'"):
        tensor_from_dlpack(Producer(capsule), None)


# --- handed out ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_and_torch_take_an_array_where_it_lies(dtype: str) -> None:
    memory, array, values = handed_out(dtype)
    with array:
        in_numpy, in_torch = np.from_dlpack(array), torch_from_dlpack(array)
    assert in_numpy.ctypes.data == in_torch.data_ptr() == memory.pointer
    assert in_numpy.dtype == np.dtype(dtype)
    assert str(in_torch.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(in_numpy, values)
    np.testing.assert_array_equal(in_torch.numpy(), values)


def test_torch_takes_a_bfloat16() -> None:
    memory = HostMemory(np.array([0x3F80, 0xC000], np.uint16))
    tensor = torch_from_dlpack(DeviceArray(memory, (2,), "bfloat16", device=CPU_DEVICE))
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [1.0, -2.0]


def test_there_and_back_is_the_same_array() -> None:
    memory, array, values = handed_out()
    tensor = tensor_from_dlpack(array, None)
    assert (tensor.pointer, tensor.shape, tensor.dtype) == (memory.pointer, (2, 3), "float32")
    np.testing.assert_array_equal(values_of(tensor), values)


def test_memory_is_freed_once_after_the_last_consumer() -> None:
    memory, array, values = handed_out()
    consumers: list[Any] = [torch_from_dlpack(array), np.from_dlpack(array), tensor_from_dlpack(array, None)]
    part = consumers[0][1:]
    array.close()
    array.close()
    while consumers:
        assert memory.closed == 0
        consumers.pop()
    gc.collect()
    assert memory.closed == 0, "a part of the array is still used"
    np.testing.assert_array_equal(part.numpy(), values[1:])
    del part
    gc.collect()
    assert memory.closed == 1


def test_memory_is_freed_with_the_array_where_nobody_took_it() -> None:
    memory, array, _ = handed_out()
    array.close()
    assert memory.closed == 1
    memory, array, _ = handed_out()
    del array
    gc.collect()
    assert memory.closed == 1


def test_a_capsule_that_nobody_takes_frees_its_claim() -> None:
    memory, array, _ = handed_out()
    capsule = array.__dlpack__()
    array.close()
    assert memory.closed == 0
    del capsule
    assert memory.closed == 1


def test_handing_out_leaks_nothing() -> None:
    _, array, _ = handed_out()
    shared = array._shared
    before = sys.getrefcount(shared)
    for _ in range(100):
        torch_from_dlpack(array)
        np.from_dlpack(array)
        tensor_from_dlpack(array, None)
        array.__dlpack__()
    gc.collect()
    assert sys.getrefcount(shared) == before


def test_a_consumer_may_outlive_the_array_and_the_interpreter() -> None:
    code = """if True:
        import sys, builtins
        import numpy as np, torch
        from runtimes.nvidia.dlpack import DeviceArray
        class Memory:
            values = np.arange(3.0)
            pointer = values.ctypes.data
            def close(self): print("closed")
        tensor = torch.from_dlpack(DeviceArray(Memory(), (3,), "float64", device=(1, 0)))
        builtins.kept = tensor  # gone among the last
        torch.kept = [tensor, tensor[1:]]
        torch.kept.append(torch.kept)
        print(tensor.sum().item())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "3.0"


def test_a_closed_array_is_not_handed_out() -> None:
    _, array, _ = handed_out()
    array.close()
    with pytest.raises(BufferError, match="closed"):
        np.from_dlpack(array)


def test_what_the_standard_forbids_is_a_buffer_error() -> None:
    _, array, _ = handed_out()
    with pytest.raises(BufferError, match="got 0; pass 1"):
        array.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="expected no copy"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"device \(2, 0\)"):
        array.__dlpack__(dl_device=(2, 0))
    assert array.__dlpack__(dl_device=CPU_DEVICE, copy=False, max_version=(1, 1))


def test_an_unknown_type_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="bfloat16, bool, got complex64"):
        DeviceArray(HostMemory(np.zeros(3)), (3,), "complex64")
