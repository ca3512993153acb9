"""NVIDIA's driver and libraries, and the GPUs that the driver sees."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtimes.benchmark.machine import driver_version
from runtimes.doctor.facts import GpuFacts, NvidiaFacts
from runtimes.doctor.host import Host
from runtimes.doctor.libraries import NVIDIA, Loader, version_of_file

LIBCUDA = "libcuda.so.1"
WSL_LIBCUDA = "/usr/lib/wsl/lib/libcuda.so.1"
WSL_NODE = "/dev/dxg"
NODES = ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/nvhost-ctrl-gpu", "dev/nvgpu/igpu*", "dev/dxg")
"""The device files of a GPU in a slot, of a Jetson's (JetPack 5 and 6; 7 has those of a slot), and of WSL."""
GRAPHICS = "0x03"
"""A display controller's class begins with it (PCI Code and ID Assignment Specification)."""
CUDNN = "libcudnn.so.9", "libcudnn.so.8"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)."""


class DriverAnswer(msgspec.Struct):
    """What the driver's library told: its newest CUDA, and the GPUs; `trouble` where it told nothing."""

    cuda: str = ""
    gpus: tuple[GpuFacts, ...] = ()
    trouble: str = ""


def nvidia_facts(host: Host, loader: Loader, answer: DriverAnswer) -> NvidiaFacts:
    """Read what there is of NVIDIA's.

    Args:
        answer: of `ask_driver`, called in a process of its own: a broken driver may take it along.
    """
    found = loader.find(LIBCUDA)
    path = found if found is not None else (host.path(WSL_LIBCUDA) if host.exists(WSL_LIBCUDA) else None)
    return NvidiaFacts(
        module=driver_version(host.root) or "",
        nodes=tuple(name for pattern in NODES for name in host.names(pattern)),
        libcuda="" if path is None else host.name_of(path),
        libcuda_version="" if path is None else _driver_number(path),
        cuda=answer.cuda,
        gpus=answer.gpus,
        trouble=answer.trouble,
        toolkit=toolkit_version(host),
        cudnn=cudnn_version(host, loader),
        in_slots=_in_slots(host),
    )


def _in_slots(host: Host) -> int:
    """NVIDIA's graphics devices on the PCI bus (the kernel's Documentation/ABI/testing/sysfs-bus-pci)."""
    found = 0
    for name in host.names("sys/bus/pci/devices/*/vendor"):
        kind = host.text(f"{name.rpartition('/')[0]}/class").strip()
        found += host.text(name).strip() == "0x10de" and kind.startswith(GRAPHICS)
    return found


def _driver_number(path: Path) -> str:
    """The driver's version in the name of its library, as `550.54.14`; a Jetson's and WSL's are named `1.1` and the
    like, which is none."""
    number = version_of_file(path)
    return number if re.fullmatch(r"\d{3}(\.\d+)+", number) else ""


def toolkit_version(host: Host) -> str:
    """The version of the CUDA toolkit in /usr/local/cuda; empty where none is."""
    found = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', host.text("/usr/local/cuda/version.json"))
    found = found or re.search(r"CUDA Version ([\d.]+)", host.text("/usr/local/cuda/version.txt"))
    return "" if found is None else found[1]


def cudnn_version(host: Host, loader: Loader) -> str:
    """The version of the cuDNN that programs find: on the loader's paths, or in NVIDIA's packages for Python."""
    for name in CUDNN:
        path = loader.find(name)
        if path is not None:
            return version_of_file(path) or name.rpartition(".")[2]
    for folder in map(Path, host.paths):
        for pattern in NVIDIA:
            for path in sorted(folder.glob(f"{pattern}/{CUDNN[0]}")):
                return version_of_file(path) or "9"
    return ""


def ask_driver(path: str) -> DriverAnswer:
    """Ask the driver's library at `path` (CUDA's driver API, cuda.h) for its GPUs; no package is needed."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        return DriverAnswer(trouble=f"{path} does not load: {error}")
    code = library.cuInit(0)
    if code:
        return DriverAnswer(trouble=f"cuInit: {_error_name(library, code)} ({code})")
    number, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    library.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(library, index) for index in range(count.value))
    return DriverAnswer(f"{number.value // 1000}.{number.value % 1000 // 10}", gpus)


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else "unknown error"


def _gpu(library: Any, index: int) -> GpuFacts:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    numbers = [ctypes.c_int(), ctypes.c_int()]
    for number, attribute in zip(numbers, (MAJOR, MINOR), strict=True):
        library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    total = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    target = f"sm{numbers[0].value}{numbers[1].value}"
    return GpuFacts(name.value.decode("utf-8", "replace"), target, total.value, _free_bytes(library, device))


def _free_bytes(library: Any, device: ctypes.c_int) -> int | None:
    """What is free on a GPU; None where no context can be made, as when all of it is taken."""
    context = ctypes.c_void_p()
    if library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    failed = library.cuCtxPushCurrent_v2(context) or library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return None if failed else free.value


def cuda_of(names: Sequence[str]) -> int | None:
    """The CUDA generation that packages with these names are made for, the newest: 13 of `tensorrt-cu13-libs`."""
    found = [int(one[1]) for name in names if (one := re.search(r"-cu(\d\d)\b", name))]
    return max(found, default=None)
