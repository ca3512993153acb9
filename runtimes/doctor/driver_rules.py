"""Rules on NVIDIA's driver: half of it mounted, two versions of it, too old, on WSL."""

from __future__ import annotations

from collections.abc import Iterator

from runtimes.doctor.facts import Facts
from runtimes.doctor.nvidia import WSL_LIBCUDA, WSL_NODE, cuda_of
from runtimes.doctor.rule import Case, Rule

OLDEST_TARGET = 75
"""TensorRT 10 and 11 take GPUs from Turing on (TensorRT's support matrix); of Jetsons, those of JetPack 6 and 7."""
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT-RTX 1.7 builds for (`tensorrt_rtx.ComputeCapability`)."""
OLDEST_DRIVERS = {12: "525", 13: "580"}
"""CUDA's generation -> the oldest driver that runs it (CUDA's release notes, "CUDA Driver")."""
IN_CONTAINER = "start the container with: docker run --gpus all ..."
ON_BOARD_CONTAINER = "start the container with: docker run --runtime nvidia ..."


def _mount(facts: Facts) -> str:
    return ON_BOARD_CONTAINER if facts.board is not None else IN_CONTAINER


def _nodes(facts: Facts) -> tuple[str, ...]:
    return tuple(name for name in facts.nvidia.nodes if name != WSL_NODE)


def _without_library(facts: Facts) -> Iterator[Case]:
    if _nodes(facts) and not facts.nvidia.libcuda:
        text = f"the GPU's device files are here ({_nodes(facts)[0]}), the driver's library libcuda.so.1 is not"
        remedy = "install the driver's library: sudo apt-get install libcuda1 (Ubuntu: libnvidia-compute-VERSION)"
        if facts.board is not None:
            remedy = "install the board's: sudo apt-get install nvidia-l4t-cuda"
        if facts.system.container:
            remedy = f"{_mount(facts)} -e NVIDIA_DRIVER_CAPABILITIES=compute,utility".replace(" ... -e", " -e") + " ..."
        yield Case(text, remedy)


def _without_nodes(facts: Facts) -> Iterator[Case]:
    if facts.nvidia.libcuda and not facts.nvidia.nodes:
        text = f"the driver's library is here ({facts.nvidia.libcuda}), the GPU's device files in /dev are not"
        remedy = _mount(facts) if facts.system.container else "load the driver: sudo modprobe nvidia && nvidia-smi"
        if facts.system.wsl:
            remedy = "in Windows: wsl --update, then wsl --shutdown"
        yield Case(text, remedy)


def _two_versions(facts: Facts) -> Iterator[Case]:
    module, library = facts.nvidia.module, facts.nvidia.libcuda_version
    if module and library and module != library:
        yield Case(
            f"the driver in the kernel is {module}, its library {library}: CUDA refuses two versions",
            "install the host's version in the image, or mount the host's: docker run --gpus all ..."
            if facts.system.container
            else "restart the machine: sudo reboot",
        )


def _no_answer(facts: Facts) -> Iterator[Case]:
    nvidia = facts.nvidia
    if nvidia.trouble and nvidia.nodes and not list(_two_versions(facts)):
        remedy = "see what it says of itself: nvidia-smi && sudo dmesg | grep -i nvrm"
        if "PERMISSION" in nvidia.trouble.upper():
            remedy = "let this user use the GPU: sudo usermod -aG video,render $USER, and log in again"
        yield Case(f"the driver does not answer: {nvidia.trouble}", remedy)


def _no_driver(facts: Facts) -> Iterator[Case]:
    nvidia = facts.nvidia
    if nvidia.in_slots and not nvidia.module and not nvidia.nodes:
        yield Case(
            "an NVIDIA GPU is on the PCI bus, and no driver for it is loaded",
            _mount(facts)
            if facts.system.container
            else "install one: sudo apt-get install nvidia-driver (Ubuntu: sudo ubuntu-drivers install), and restart",
        )


def _wsl_without_library(facts: Facts) -> Iterator[Case]:
    if facts.system.wsl and not facts.nvidia.libcuda:
        yield Case(
            "this is WSL, and Windows' NVIDIA driver puts no libcuda.so.1 into /usr/lib/wsl/lib",
            "install NVIDIA's driver in Windows (none inside of WSL), then: wsl --update",
        )


def _wsl_with_linux_driver(facts: Facts) -> Iterator[Case]:
    path = facts.nvidia.libcuda
    if facts.system.wsl and path and not path.startswith("/usr/lib/wsl/"):
        yield Case(
            f"this is WSL, and programs load {path} of a Linux driver in place of Windows' {WSL_LIBCUDA}",
            "sudo apt-get purge '^nvidia-driver-.*' '^libnvidia-compute-.*' && sudo ldconfig",
        )


def _driver_too_old(facts: Facts) -> Iterator[Case]:
    newest = facts.nvidia.cuda
    for name, packages in (("TensorRT", "tensorrt-cu"), ("TensorRT-RTX", "tensorrt-rtx-cu")):
        wanted = cuda_of([one.name for one in facts.packages.installed if one.name.startswith(packages)])
        if newest and wanted and int(newest.split(".")[0]) < wanted:
            yield Case(
                f"{name} is the package for CUDA {wanted}, and the driver runs CUDA up to {newest}",
                f"update the driver to {OLDEST_DRIVERS.get(wanted, 'the newest')} or newer, or install the package for "
                f"CUDA {newest.split('.')[0]}: pip install {packages}{newest.split('.')[0]}",
                name.lower(),
            )


def _gpu_too_old(facts: Facts) -> Iterator[Case]:
    for gpu in facts.nvidia.gpus:
        if facts.board is None and _number(gpu.target) < OLDEST_TARGET:
            yield Case(
                f"{gpu.name} ({gpu.target}) is older than TensorRT 10 and 11 take (sm{OLDEST_TARGET})",
                "run on it with: --backend onnxruntime --provider cuda",
                "tensorrt",
            )


def _number(target: str) -> int:
    return int(target.removeprefix("sm") or 0)


def _not_for_rtx(facts: Facts) -> Iterator[Case]:
    others = [gpu for gpu in facts.nvidia.gpus if gpu.target not in RTX_TARGETS]
    if others and facts.backend("tensorrt-rtx").loads:
        yield Case(
            f"TensorRT-RTX builds for {', '.join(RTX_TARGETS)}, not for {others[0].name} ({others[0].target})",
            "use TensorRT there: pip install 'resnet-export[tensorrt]'",
            "tensorrt-rtx",
            "error" if "tensorrt-rtx" in facts.asked else None,
        )


def _unused(facts: Facts) -> Iterator[Case]:
    if facts.nvidia.gpus and facts.backends and not any(_uses_gpu(facts, one.name) for one in facts.backends):
        yield Case(
            f"nothing that is installed runs on the GPU ({facts.nvidia.gpus[0].name})",
            "sudo apt-get install python3-libnvinfer, in a venv made with --system-site-packages"
            if facts.board is not None
            else "pip install 'resnet-export[tensorrt]'",
        )


def _uses_gpu(facts: Facts, name: str) -> bool:
    one = facts.backend(name)
    return (one.runs and name.startswith("tensorrt")) or any(
        where.startswith(("cuda", "tensorrt")) for where in one.where
    )


RULES = (
    Rule("DR101", "error", "device files without the driver's library", _without_library),
    Rule("DR102", "error", "the driver's library without device files", _without_nodes),
    Rule("DR103", "error", "two versions of the driver", _two_versions),
    Rule("DR104", "error", "a driver that does not answer", _no_answer),
    Rule("DR105", "warning", "a GPU without a driver", _no_driver),
    Rule("DR106", "warning", "WSL without Windows' driver", _wsl_without_library),
    Rule("DR107", "warning", "WSL with a Linux driver", _wsl_with_linux_driver),
    Rule("DR108", "error", "a package for a newer CUDA than the driver's", _driver_too_old),
    Rule("DR109", "warning", "a GPU that is too old for TensorRT", _gpu_too_old),
    Rule("DR110", "warning", "a GPU that TensorRT-RTX does not build for", _not_for_rtx),
    Rule("DR111", "warning", "a GPU, and no backend that runs on it", _unused),
)
