"""What is known of a machine, as plain values: probes fill them in, rules and the page read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtimes.board.jetpack import Board
from runtimes.processor import Processor


@dataclass(frozen=True)
class SystemFacts:
    """The machine without its GPU. What could not be read is empty or None.

    Attributes:
        name: of the distribution, with its version.
        kernel: its release, for example `5.15.148-tegra`.
        machine: `x86_64` or `aarch64`.
        python: its version; `executable` is its file.
        container: what made the container that this is in, for example `Docker`; empty outside of one.
        wsl: is it Linux inside of Windows?
        memory_bytes, free_bytes: of all memory, and of what is left to this process, within its control group's limit.
        cores: that this process may use.
    """

    name: str
    kernel: str
    machine: str
    libc: str
    python: str
    container: str
    wsl: bool
    processor: Processor
    cores: int
    memory_bytes: int | None
    free_bytes: int | None
    executable: str = ""


@dataclass(frozen=True)
class GpuFacts:
    """A GPU, as the driver describes it; `target` is its compute capability, for example `sm87`."""

    name: str
    target: str
    memory_bytes: int
    free_bytes: int | None = None


@dataclass(frozen=True)
class NvidiaFacts:
    """NVIDIA's driver and libraries.

    Attributes:
        module: the version of the driver in the kernel.
        nodes: its device files, and WSL's.
        libcuda: the path of the driver's library that programs load; `libcuda_version` is of its file's name.
        cuda: the newest CUDA that the driver runs.
        trouble: why the driver does not answer.
        toolkit: the version of the CUDA toolkit in /usr/local/cuda.
        cudnn: the version of cuDNN that programs find.
        in_slots: how many of its graphics devices are on the PCI bus, with or without a driver.
    """

    module: str = ""
    nodes: tuple[str, ...] = ()
    libcuda: str = ""
    libcuda_version: str = ""
    cuda: str = ""
    gpus: tuple[GpuFacts, ...] = ()
    trouble: str = ""
    toolkit: str = ""
    cudnn: str = ""
    in_slots: int = 0

    @property
    def is_there(self) -> bool:
        """Is there anything of a driver or a GPU?"""
        return bool(self.module or self.nodes or self.libcuda or self.in_slots)


@dataclass(frozen=True)
class Package:
    """An installed distribution; `folder` is where it lies."""

    name: str
    version: str
    folder: str


@dataclass(frozen=True)
class PackageFacts:
    """Installed packages that matter here.

    Attributes:
        installed: by name, sorted.
        owners: of `exporter`, `runtimes` and `calibration`, the other distributions that install one, by package.
        board_tensorrt: the folder of JetPack's TensorRT for Python where this environment does not look; empty if none.
    """

    installed: tuple[Package, ...] = ()
    owners: dict[str, tuple[str, ...]] = field(default_factory=dict)
    board_tensorrt: str = ""

    def version_of(self, *names: str) -> str:
        """The version of the first of these that is installed; empty if none is."""
        versions = {one.name: one.version for one in self.installed}
        return next((versions[name] for name in names if name in versions), "")


@dataclass(frozen=True)
class Missing:
    """A library that another needs and the loader does not find; `elsewhere` is where one of that name lies."""

    name: str
    elsewhere: str = ""


@dataclass(frozen=True)
class LibraryFacts:
    """A library of a backend that is loaded late, or not at all.

    Attributes:
        part: what it is for, for example `onnxruntime's cuda provider`.
        backend: whose it is.
        needed: does the backend need it, or only one of its providers?
        missing: the libraries that it lacks, itself or by those that it needs.
        problem: why it cannot be read.
    """

    file: str
    part: str
    backend: str
    needed: bool
    missing: tuple[Missing, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ProviderFacts:
    """A provider of a backend, for example `cuda`, which was tried; `reason` says why it does not work."""

    name: str
    works: bool
    reason: str = ""


@dataclass(frozen=True)
class BackendFacts:
    """A backend, which was loaded in a process of its own.

    Attributes:
        loads: can its package be imported?
        runs: can it run a model here?
        reason: why not.
        refusal: why it does not run the bundle that was asked about; empty if it does, or none was.
        unbuilt: why it loads no engine of that bundle yet; empty if it does, or needs none.
    """

    name: str
    version: str = ""
    loads: bool = False
    runs: bool = False
    reason: str = ""
    providers: tuple[ProviderFacts, ...] = ()
    refusal: str = ""
    unbuilt: str = ""

    @property
    def where(self) -> tuple[str, ...]:
        """The providers that work."""
        return tuple(one.name for one in self.providers if one.works)

    @property
    def broke(self) -> bool:
        """Did the process that loads it crash, end or hang? Then its module is here, even without metadata."""
        return self.reason.startswith(("it crashed", "it ended", "it did not load"))


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that was asked about, and what an engine of it takes.

    Attributes:
        rejection: why its export rejected it; empty for any other.
        disk_bytes, free_disk_bytes: what a build writes at most, and what is free where it writes.
        memory_bytes: what a build takes at least, by the size of the graph.
        writable: can its `engines/` be written?
        build_refusals: by builder, why it cannot build this bundle.
        key_problem: why this machine's engine key has no place.
    """

    path: str
    name: str
    precision: str
    target: str
    batch: str
    rejection: str
    disk_bytes: int
    memory_bytes: int
    free_disk_bytes: int | None
    writable: bool
    build_refusals: dict[str, str] = field(default_factory=dict)
    key_problem: str = ""


@dataclass(frozen=True)
class Facts:
    """All that was found out.

    Attributes:
        dla: what is known of the board's DLA, in words; empty elsewhere.
        asked: the backends that were asked about by name.
        unread: probes that failed, in words: odd systems have more of them.
    """

    system: SystemFacts
    board: Board | None
    nvidia: NvidiaFacts
    packages: PackageFacts
    libraries: tuple[LibraryFacts, ...] = ()
    backends: tuple[BackendFacts, ...] = ()
    bundle: BundleFacts | None = None
    asked: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    dla: str = ""

    def backend(self, name: str) -> BackendFacts:
        """A backend by its name; one that was not tried neither loads nor runs."""
        return next((one for one in self.backends if one.name == name), BackendFacts(name))
