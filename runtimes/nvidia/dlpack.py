"""Exchange arrays with other libraries (PyTorch, CuPy, JAX) by DLPack, without a copy. Needs none of those libraries.

An imported array is kept alive by its capsule, whose destructor tells the producer that we are done. For export, numpy
builds the capsule, in C: a deleter written in Python would crash when a consumer outlives the interpreter. The device,
and types that numpy lacks, are then written into the capsule.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from runtimes.errors import BadInput
from runtimes.nvidia.dlpack_capsule import CODES, DTYPES, VERSION, DLDevice, DLTensor, tensor_from_capsule

if TYPE_CHECKING:
    from typing_extensions import CapsuleType  # types has it from Python 3.13 on

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
NAMES = {CPU: "the CPU", CUDA: "a CUDA device", CUDA_HOST: "pinned CPU memory", CUDA_MANAGED: "CUDA's managed memory"}
LEGACY_STREAM, NO_SYNC = 1, -1


@dataclass(frozen=True)
class DeviceTensor:
    """Another library's row-major array, which lives as long as this object. `dtype` is numpy's name, or `bfloat16`;
    `device_type` is DLPack's number."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device_type: int
    device_index: int
    owner: object = field(repr=False, compare=False)

    @property
    def on_device(self) -> bool:
        """Is the memory a CUDA device's? Otherwise the CPU can read it."""
        return self.device_type in (CUDA, CUDA_MANAGED)


def tensor_from_dlpack(tensor: object, stream_handle: int | None) -> DeviceTensor:
    """Import an array by DLPack.

    Keep the result until the work that uses the array is done: dropping it releases the array.

    Args:
        stream_handle: the stream that will use the array; its later work runs after what the producer has queued. None
            for use on the CPU, which refuses CUDA arrays.

    Raises:
        BadInput: it does not support DLPack, is on another kind of device, not row-major, or of an unknown type.
    """
    if not (hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__")):
        raise BadInput(
            f"expected an array that speaks DLPack, got {type(tensor).__name__}; pass one of numpy, PyTorch, CuPy or "
            "JAX"
        )
    kind, index = (int(value) for value in tensor.__dlpack_device__())
    if kind not in NAMES:
        raise BadInput(
            f"expected an array on the CPU or a CUDA device, got DLPack device type {kind}; copy it to the CPU"
        )
    arguments = {}
    if kind in (CUDA, CUDA_MANAGED):
        if stream_handle is None:
            raise BadInput(f"expected an array on the CPU, got one on {NAMES[kind]} ({index}); copy it to the CPU")
        arguments["stream"] = stream_handle
    capsule = _capsule_of(tensor, arguments)
    return _device_tensor(tensor_from_capsule(capsule), capsule)


def _capsule_of(tensor: Any, arguments: dict[str, int]) -> object:
    try:
        try:
            return tensor.__dlpack__(**arguments, max_version=VERSION)
        except TypeError:  # a producer from before DLPack 1.0
            return tensor.__dlpack__(**arguments)
    except Exception as error:  # BufferError by the standard; in fact producers raise RuntimeError and others, too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{type(tensor).__name__} cannot be shared by DLPack: {reason}") from error


def _device_tensor(tensor: DLTensor, capsule: object) -> DeviceTensor:
    shape = tuple(tensor.shape[place] for place in range(tensor.ndim))
    kind = tensor.dtype
    if kind.lanes != 1 or (kind.code, kind.bits) not in DTYPES:
        raise BadInput(
            f"expected one of {', '.join(DTYPES.values())}, got DLPack type {kind.code} of {kind.bits} bits, "
            f"{kind.lanes} lanes"
        )
    if tensor.strides:
        strides = tuple(tensor.strides[place] for place in range(tensor.ndim))
        if not _is_row_major(shape, strides):
            raise BadInput(
                f"expected a row-major array, got shape {shape} with strides {strides}; call its contiguous() or "
                "numpy.ascontiguousarray"
            )
    return DeviceTensor(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=DTYPES[kind.code, kind.bits],
        device_type=tensor.device.kind,
        device_index=tensor.device.index,
        owner=capsule,
    )


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Is an array of these strides, in elements, row-major? The stride of a dimension of size 1 means nothing, nor do
    those of an empty array."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


# --- handing out ---


class Memory(Protocol):
    """Memory that a DeviceArray owns."""

    @property
    def pointer(self) -> int: ...

    def close(self) -> None: ...


class Ready(Protocol):
    """The event after which memory holds its data."""

    def before(self, stream_handle: int) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class _Shared:
    """Memory and its event, shared by a DeviceArray and all its consumers, and closed when the last of them is gone."""

    def __init__(self, memory: Memory, ready: Ready | None) -> None:
        self.pointer = memory.pointer
        self.ready = ready
        finalizer = weakref.finalize(self, _free, memory, ready)
        finalizer.atexit = False  # at exit the process gives everything back, and CUDA may be gone


def _free(memory: Memory, ready: Ready | None) -> None:
    """Free shared memory. Consumers release it when they will queue no more work; `cudaFree` waits for queued work."""
    try:
        if ready is not None:
            ready.synchronize()
            ready.close()
    finally:
        memory.close()


class _HostView:
    """Lets numpy make an array, and so a capsule, of memory that it never reads: it may be a device's."""

    def __init__(self, shared: _Shared, shape: tuple[int, ...], dtype: str) -> None:
        self.shared = shared
        self.__array_interface__ = {
            "data": (shared.pointer, False),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


@final
class DeviceArray:
    """An array on a device, which any library imports by its `from_dlpack` without a copy.

    It owns `memory`, and `ready`, the event to wait for, if there is one. `memory.close()` is called once this array is
    closed or dropped and every consumer has released it, in whichever thread was last. `dtype` is numpy's name, or
    `bfloat16`; `device` is DLPack's (device type, index).
    """

    def __init__(
        self,
        memory: Memory,
        shape: tuple[int, ...],
        dtype: str,
        *,
        device: tuple[int, int] = (CUDA, 0),
        ready: Ready | None = None,
    ) -> None:
        assert dtype in CODES, f"expected one of {', '.join(DTYPES.values())}, got {dtype}"
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._shared: _Shared | None = _Shared(memory, ready)

    def close(self) -> None:
        """Release the memory; consumers keep it."""
        self._shared = None

    def __enter__(self) -> DeviceArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        """A capsule for one consumer, whose stream is made to wait for the data: None is the legacy default stream, -1
        for no waiting.

        Raises:
            BufferError: a copy is asked for, another device, or stream 0, which the standard forbids as ambiguous.
        """
        if self._shared is None:
            raise BufferError("this array is closed")
        if copy or (dl_device is not None and tuple(dl_device) != self._device):
            raise BufferError(
                f"expected no copy and device {self._device}, got copy {copy} and device {dl_device}; copy it after "
                "from_dlpack"
            )
        if stream == 0:
            raise BufferError(
                "expected the consumer's stream, got 0; pass 1 for the legacy default stream or 2 for the thread's"
            )
        if self._shared.ready is not None and stream != NO_SYNC:
            self._shared.ready.before(LEGACY_STREAM if stream is None else stream)
        return self._capsule(self._shared)

    def _capsule(self, shared: _Shared) -> CapsuleType:
        """A capsule of DLPack before 1.0, which every consumer takes, whatever its `max_version`. numpy gets all types
        as unsigned integers, since it lacks some of them."""
        code, bits = CODES[self.dtype]
        capsule = np.asarray(_HostView(shared, self.shape, f"uint{bits}")).__dlpack__()
        tensor = tensor_from_capsule(capsule)
        tensor.device = DLDevice(*self._device)
        tensor.dtype.code = code
        return capsule
