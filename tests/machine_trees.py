"""Trees of the files that tell what a machine is: boards, a desktop, a container, WSL.

They are written from documentation and from what owners of such machines published, not recorded on hardware by us.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimes.doctor.host import Host

UBUNTU = 'NAME="Ubuntu"\nVERSION_ID="{0}"\nPRETTY_NAME="Ubuntu {0} LTS"\n'
ARM_CORE = "processor\t: {0}\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm aes {1}\nCPU implementer\t: 0x41\n\n"
X86_CORE = "processor\t: {0}\nmodel name\t: 13th Gen Intel(R) Core(TM) i7-13700K\nflags\t\t: fpu sse2 avx2 {1}\n\n"
MEMORY = "MemTotal:       {0} kB\nMemFree:         100000 kB\nMemAvailable:   {1} kB\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {0}  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12\n"
GIB = 1 << 20  # in kB
ARM_LIBRARIES, X86_LIBRARIES = "usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu"
SITE = "venv/lib/python3/site-packages"


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def library(needed: Sequence[str] = (), runpath: str = "", *, rpath: str = "") -> bytes:
    """A shared library with nothing but its dynamic section: 64 bits, little-endian."""
    text, places = b"\0", []
    for name in (*needed, runpath or rpath):
        places.append(len(text))
        text += name.encode() + b"\0"
    entries = [(1, place) for place in places[:-1]]
    if runpath or rpath:
        entries.append((29 if runpath else 15, places[-1]))
    address, header = 0x1000, 64 + 2 * 56
    size = (len(entries) + 3) * 16
    entries += [(5, address + header + size), (10, len(text)), (0, 0)]
    whole = header + size + len(text)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, whole, whole, 0x1000)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, header, address + header, address + header, size, size, 8)
    start = (
        b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    return start + load + dynamic + b"".join(struct.pack("<QQ", *one) for one in entries) + text


def installed(name: str, version: str, site: str = SITE, files: Sequence[str] = ()) -> dict[str, str]:
    """The metadata of an installed package."""
    folder = f"{site}/{name.replace('-', '_')}-{version}.dist-info"
    record = "".join(f"{file},,\n" for file in files)
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{folder}/RECORD": record,
    }


def _board(root: Path, release: str, model: str, ubuntu: str, kernel: str) -> None:
    write(
        root,
        {
            "etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n",
            "proc/device-tree/model": f"{model}\0",
            "etc/os-release": UBUNTU.format(ubuntu),
            "proc/version": f"Linux version {kernel} (buildbrain@mobile) #1 SMP PREEMPT\n",
        },
    )


def _board_packages(version: str, python: str, number: int) -> dict[str, str | bytes]:
    """TensorRT as JetPack's python3-libnvinfer brings it."""
    site = "usr/lib/python3/dist-packages" if python != "3.10" else "usr/lib/python3.10/dist-packages"
    return {
        f"{site}/tensorrt/__init__.py": "",
        f"{site}/tensorrt/tensorrt.so": library([f"libnvinfer.so.{number}"]),
        f"{site}/tensorrt-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n",
        f"{ARM_LIBRARIES}/libnvinfer.so.{number}": library(["libcuda.so.1"]),
        f"{ARM_LIBRARIES}/nvidia/libcuda.so.1.1": library(),
        f"{ARM_LIBRARIES}/nvidia/libcuda.so.1": library(),
        "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
        "etc/ld.so.conf.d/nvidia-tegra.conf": f"/{ARM_LIBRARIES}/nvidia\n",
    }


def jetpack_5(root: Path) -> Host:
    """An Xavier NX, with the Python 3.10 of its owner."""
    _board(root, "R35 (release), REVISION: 4.1", "NVIDIA Jetson Xavier NX Developer Kit", "20.04", "5.10.120-tegra")
    cores = "".join(ARM_CORE.format(core, "fphp asimdhp") for core in range(6))
    write(root, {"proc/cpuinfo": cores, "proc/meminfo": MEMORY.format(7 * GIB, 4 * GIB), "dev/nvhost-ctrl-gpu": ""})
    write(root, _board_packages("8.5.2.2", "3.8", 8))
    return Host(root, "aarch64", "3.10.12", (f"{root}/{SITE}",), {}, is_here=False)


def jetpack_6(root: Path, *, sees_system: bool = True) -> Host:
    """An Orin Nano, in a venv that sees the system's packages, or does not."""
    model = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    _board(root, "R36 (release), REVISION: 4.3", model, "22.04", "5.15.148-tegra")
    cores = "".join(ARM_CORE.format(core, "asimddp") for core in range(6))
    write(root, {"proc/cpuinfo": cores, "proc/meminfo": MEMORY.format(7 * GIB, 5 * GIB), "dev/nvgpu/igpu0/ctrl": ""})
    write(root, {"usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.11"}}'})
    write(root, _board_packages("10.3.0", "3.10", 10))
    write(root, installed("cuda-python", "12.8.0"))
    system = (f"{root}/usr/lib/python3.10/dist-packages",) if sees_system else ()
    return Host(root, "aarch64", "3.10.12", (f"{root}/{SITE}", *system), {}, is_here=False)


def jetpack_7(root: Path) -> Host:
    """An AGX Thor."""
    _board(root, "R38 (release), REVISION: 4.0", "NVIDIA Jetson AGX Thor Developer Kit", "24.04", "6.8.12-tegra")
    cores = "".join(ARM_CORE.format(core, "asimddp i8mm bf16 sve") for core in range(14))
    write(root, {"proc/cpuinfo": cores, "proc/meminfo": MEMORY.format(122 * GIB, 110 * GIB), "dev/nvidia0": ""})
    write(root, {"dev/nvidiactl": "", "proc/driver/nvidia/version": DRIVER.format("580.00")})
    write(root, _board_packages("10.13.3.9", "3.12", 10))
    write(root, installed("cuda-python", "13.0.0"))
    return Host(
        root, "aarch64", "3.12.3", (f"{root}/{SITE}", f"{root}/usr/lib/python3/dist-packages"), {}, is_here=False
    )


def desktop(root: Path) -> Host:
    """A desktop with a driver and both packages of ONNX Runtime, without cuDNN; CUDA lies where nothing looks."""
    cores = "".join(X86_CORE.format(core, "avx_vnni") for core in range(4))
    provider = library(["libcudart.so.12", "libcudnn.so.9", "libonnxruntime_providers_shared.so"], "$ORIGIN")
    write(
        root,
        {
            "etc/os-release": UBUNTU.format("22.04"),
            "proc/version": "Linux version 6.5.0-44-generic (buildd@lcy02)\n",
            "proc/cpuinfo": cores,
            "proc/meminfo": MEMORY.format(31 * GIB, 20 * GIB),
            "proc/driver/nvidia/version": DRIVER.format("550.54.14"),
            "dev/nvidia0": "",
            "dev/nvidiactl": "",
            f"{X86_LIBRARIES}/libcuda.so.550.54.14": library(),
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
            "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
            "usr/local/cuda/lib64/libcudart.so.12": library(),
            f"{SITE}/onnxruntime/capi/libonnxruntime_providers_cuda.so": provider,
            f"{SITE}/onnxruntime/capi/libonnxruntime_providers_shared.so": library(),
        },
    )
    (root / X86_LIBRARIES / "libcuda.so.1").symlink_to("libcuda.so.550.54.14")
    for name in ("onnxruntime", "onnxruntime-gpu"):
        write(root, installed(name, "1.31.1", files=["onnxruntime/__init__.py"]))
    return Host(root, "x86_64", "3.11.7", (f"{root}/{SITE}",), {}, is_here=False)


def half_mounted(root: Path) -> Host:
    """A container that was given the GPU's device files, and not the driver's libraries."""
    write(
        root,
        {
            ".dockerenv": "",
            "etc/os-release": 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\n',
            "proc/version": "Linux version 6.5.0-44-generic (buildd@lcy02)\n",
            "proc/cpuinfo": X86_CORE.format(0, ""),
            "proc/meminfo": MEMORY.format(31 * GIB, 20 * GIB),
            "proc/driver/nvidia/version": DRIVER.format("550.54.14"),
            "sys/fs/cgroup/memory.max": "2147483648\n",
            "sys/fs/cgroup/memory.current": "1073741824\n",
            "dev/nvidia0": "",
            "dev/nvidiactl": "",
        },
    )
    return Host(root, "x86_64", "3.11.7", (f"{root}/{SITE}",), {}, is_here=False)


def wsl(root: Path, *, driver: bool = True) -> Host:
    """Ubuntu in WSL, with or without NVIDIA's driver in Windows."""
    write(
        root,
        {
            "etc/os-release": UBUNTU.format("24.04"),
            "proc/version": "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1)\n",
            "proc/cpuinfo": X86_CORE.format(0, "avx_vnni"),
            "proc/meminfo": MEMORY.format(15 * GIB, 12 * GIB),
            "dev/dxg": "",
            "usr/lib/wsl/lib/libdxcore.so": library(),
        },
    )
    if driver:
        write(root, {"usr/lib/wsl/lib/libcuda.so.1": library(), "etc/ld.so.conf": "/usr/lib/wsl/lib\n"})
    return Host(root, "x86_64", "3.12.3", (f"{root}/{SITE}",), {}, is_here=False)
