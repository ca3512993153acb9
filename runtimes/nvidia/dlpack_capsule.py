"""What a DLPack capsule holds: the C structures of the standard, and the numbers by which it names types."""

from __future__ import annotations

import ctypes

from runtimes.errors import BadInput

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


class DLDevice(ctypes.Structure):
    """Where an array lies: `kind` is a device type, as 1 for the CPU."""

    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    """An array's memory and layout, with which a "dltensor" capsule's DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensorVersioned(ctypes.Structure):
    """What a "dltensor_versioned" capsule holds."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


# Prototypes of our own: to declare types on `ctypes.pythonapi`'s functions would change them for everyone in the
# process.
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def tensor_from_capsule(capsule: object) -> DLTensor:
    """The DLTensor in a capsule. It is the capsule's memory: use it only while the capsule lives.

    Raises:
        BadInput: it is no DLPack capsule, one that was consumed, or of another major version.
    """
    name = _capsule_name(capsule)
    if name == b"dltensor":
        return DLTensor.from_address(_capsule_pointer(capsule, name))
    if name == b"dltensor_versioned":
        versioned = _DLManagedTensorVersioned.from_address(_capsule_pointer(capsule, name))
        if versioned.major == VERSION[0]:  # another major version may lay out the rest differently
            return versioned.tensor  # type: ignore[no-any-return]  # ctypes types fields as Any
        raise BadInput(f"expected DLPack {VERSION[0]}.x, got {versioned.major}.{versioned.minor}; update resnet-export")
    raise BadInput(f"expected a DLPack capsule, got one named {name!r}")
