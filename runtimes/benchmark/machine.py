"""The machine that a benchmark ran on, as far as it decides speed."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from runtimes.board.power import Power, power
from runtimes.cores import usable_cores
from runtimes.errors import BackendUnavailable
from runtimes.processor import processor

PACKAGES = (
    *("resnet-export", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt", "tensorrt-rtx"),
    *("tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)
"""Those that decide how fast a model runs; the last ones by their names on PyPI."""
GOVERNORS = "sys/devices/system/cpu/cpufreq"
DRIVER = "proc/driver/nvidia/version"
ROOT = Path("/")
OF_THE_MOMENT = ("load", "system", "governors", "power")
"""Fields of a machine that its key leaves out."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (`sm90`), memory, the newest CUDA of its driver, and the driver's version
    where Linux tells it."""

    name: str
    target: str
    memory_bytes: int
    cuda: str
    driver: str | None


@dataclass(frozen=True)
class Machine:
    """A machine, and the state that it was in before anything was measured.

    Attributes:
        processor: its name.
        flags: its instructions that decide which precisions are fast, by the kernel's names.
        cores: how many there are; `usable_cores` those that this process may use.
        governors: how Linux chooses the cores' clock (`performance`, `powersave`), each once; empty where it does not
            say.
        load: the average number of running processes of the minute before.
        versions: of the packages that run models, by name.
        power: the power mode, clocks and temperatures of a Jetson; None elsewhere, and in results of earlier versions.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    usable_cores: int
    governors: tuple[str, ...]
    memory_bytes: int | None
    gpu: Gpu | None
    system: str
    python: str
    load: float | None
    versions: dict[str, str]
    power: Power | None = None

    @property
    def key(self) -> str:
        """A name for what decides speed here, sha256 in hex: not the state of the moment, nor the system's release."""
        fixed = {name: value for name, value in asdict(self).items() if name not in OF_THE_MOMENT}
        return hashlib.sha256(msgspec.json.encode(fixed, order="sorted")).hexdigest()

    @property
    def is_busy(self) -> bool:
        """Did other processes use much of it before?"""
        return self.load is not None and self.load > 0.3 * self.usable_cores


def this_machine(root: Path = ROOT) -> Machine:
    """Describe the machine that this process runs on. What it does not tell is left empty.

    Args:
        root: where `proc`, `sys`, `etc` and `var` are.
    """
    known = processor()
    return Machine(
        processor=known.name,
        flags=known.flags,
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        governors=_governors(root),
        memory_bytes=_memory_bytes(),
        gpu=_gpu(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions=installed_versions(),
        power=power(root),
    )


def installed_versions() -> dict[str, str]:
    """The versions of those of `PACKAGES` that are installed; imports none of them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _governors(root: Path) -> tuple[str, ...]:
    """Source: the kernel's Documentation/admin-guide/pm/cpufreq.rst."""
    found = set()
    for path in (root / GOVERNORS).glob("policy*/scaling_governor"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue
    return tuple(sorted(found))


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on Linux
        return None


def _gpu(root: Path) -> Gpu | None:
    try:
        from runtimes.nvidia.cuda import device
    except ImportError:  # NVIDIA's bindings are not installed
        return None
    try:
        found = device()
    except BackendUnavailable:  # no driver, or no GPU
        return None
    return Gpu(found.name, found.target, found.total_bytes, found.driver, driver_version(root))


def driver_version(root: Path = ROOT) -> str | None:
    """The version of the driver, from a line as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86  ...`."""
    try:
        words = (root / DRIVER).read_text(errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)
