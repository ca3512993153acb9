"""DLPack: arrays of other libraries (PyTorch, CuPy, JAX) taken in, and ours handed out, without a copy. Needs none of
those libraries.

What is taken in is owned by its capsule, whose destructor tells the producer that we are done. What is handed out is
wrapped by numpy, which knows nothing of devices but builds capsules in C: a deleter written in Python would crash when
a consumer outlives the interpreter. What numpy cannot know, the device and types that it lacks, is then written into
the capsule.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from runtimes.errors import BadInput

if TYPE_CHECKING:
    from typing_extensions import CapsuleType  # types has it from Python 3.13 on

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
NAMES = {CPU: "the CPU", CUDA: "a CUDA device", CUDA_HOST: "pinned CPU memory", CUDA_MANAGED: "CUDA's managed memory"}
INT, UINT, FLOAT, BFLOAT, BOOL = 0, 1, 2, 4, 6
DTYPES = {
    **{(INT, bits): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(UINT, bits): f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{(FLOAT, bits): f"float{bits}" for bits in (16, 32, 64)},
    (BFLOAT, 16): "bfloat16",
    (BOOL, 8): "bool",
}
CODES = {name: code for code, name in DTYPES.items()}
VERSION = (1, 1)
LEGACY_STREAM, NO_SYNC = 1, -1


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor, with which a "dltensor" capsule's DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned, which a "dltensor_versioned" capsule holds."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: to declare types on `ctypes.pythonapi`'s functions would change them for everyone in the
# process.
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True)
class DeviceTensor:
    """Another library's array, row-major, alive as long as this is. `dtype` is numpy's name, or `bfloat16`;
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
    """Take in an array by DLPack. What is queued in the stream from now on runs after what its producer has queued;
    None takes no CUDA arrays.

    The array must not be let go (by dropping what is returned) before work that uses it is done.

    Raises:
        BadInput: it is not an array that speaks DLPack, or is elsewhere, not row-major, or of an unknown type.
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
    capsule = _exported(tensor, arguments)
    return _described(_tensor_from_capsule(capsule), capsule)


def _exported(tensor: Any, arguments: dict[str, int]) -> object:
    try:
        try:
            return tensor.__dlpack__(**arguments, max_version=VERSION)
        except TypeError:  # a producer from before DLPack 1.0
            return tensor.__dlpack__(**arguments)
    except (
        Exception
    ) as error:  # producers raise what they like: BufferError by the standard, RuntimeError and others in fact
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{type(tensor).__name__} cannot be shared by DLPack: {reason}") from error


def _tensor_from_capsule(capsule: object) -> _Tensor:
    """The DLTensor in a capsule. It is the capsule's memory: look at it only while the capsule lives."""
    name = _capsule_name(capsule)
    if name == b"dltensor":
        return _Tensor.from_address(_capsule_pointer(capsule, name))
    if name == b"dltensor_versioned":
        versioned = _Versioned.from_address(_capsule_pointer(capsule, name))
        if versioned.major == VERSION[0]:  # another major version may lay out the rest differently
            return versioned.tensor  # type: ignore[no-any-return]  # ctypes types fields as Any
        raise BadInput(f"expected DLPack {VERSION[0]}.x, got {versioned.major}.{versioned.minor}; update resnet-export")
    raise BadInput(f"expected a DLPack capsule, got one named {name!r}")


def _described(tensor: _Tensor, capsule: object) -> DeviceTensor:
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
    """Strides count elements; that of a dimension of size 1, and all those of an empty array, mean nothing."""
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
    """The event after which the memory holds the data."""

    def before(self, stream_handle: int) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class _Shared:
    """Memory and its event, held by a DeviceArray and by every consumer of it; they are closed with the last of
    them."""

    def __init__(self, memory: Memory, ready: Ready | None) -> None:
        self.pointer = memory.pointer
        self.ready = ready
        weakref.finalize(
            self, _free, memory, ready
        ).atexit = False  # at exit the process gives everything back, and CUDA may be gone


def _free(memory: Memory, ready: Ready | None) -> None:
    """Consumers let go when they will queue no more work; `cudaFree` waits for what they have queued."""
    try:
        if ready is not None:
            ready.synchronize()
            ready.close()
    finally:
        memory.close()


class _HostView:
    """What numpy makes an array of, and so a capsule. It never looks at the memory, which may be a device's."""

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
    """An array that any library takes by its `from_dlpack`, without a copy. It owns `memory`, and `ready` where there
    is work to wait for.

    The memory is freed once this is closed, or dropped, and every consumer has let go: then, and not before,
    `memory.close()` is called, in whichever thread was last. `dtype` is numpy's name, or `bfloat16`; `device` is
    DLPack's (device type, index).
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
        """Let go of the memory; consumers keep it."""
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
        """A capsule for one consumer, whose stream then waits for the data: None means the legacy default stream, -1 no
        waiting.

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
        """Of DLPack's first version, which every consumer takes, whatever its `max_version`. To numpy all types are
        unsigned: it knows not all."""
        code, bits = CODES[self.dtype]
        capsule = np.asarray(_HostView(shared, self.shape, f"uint{bits}")).__dlpack__()
        tensor = _tensor_from_capsule(capsule)
        tensor.device = _Device(*self._device)
        tensor.dtype.code = code
        return capsule
