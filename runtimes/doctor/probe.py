"""Find out all that there is to know of a machine: the probes in their order, each of which may fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from runtimes._open import backend_names
from runtimes.board.dla import DLA_VERSIONS, board_has_dla, dla_versions
from runtimes.board.jetpack import Board, this_board
from runtimes.doctor.answers import DRIVER
from runtimes.doctor.children import TIMEOUT_S, Answer, Child
from runtimes.doctor.facts import BackendFacts, BundleFacts, Facts, LibraryFacts, NvidiaFacts, PackageFacts, SystemFacts
from runtimes.doctor.host import Host, Unread
from runtimes.doctor.libraries import Loader, library_facts
from runtimes.doctor.nvidia import DriverAnswer, nvidia_facts
from runtimes.doctor.packages import package_facts
from runtimes.doctor.system import system_facts
from runtimes.processor import Processor
from runtimes.progress import Progress, silent

TOGETHER = 2
"""How many backends are loaded at a time: more would need much memory on a board."""
NO_CACHE = {"XDG_CACHE_HOME": "/dev/null"}  # in which nobody can make a folder
"""For the children: nothing of a question is kept."""
PACKAGES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "pytorch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "triton": ("tritonclient",),
}
"""The packages of backends whose version is not under their own name."""


def examine(
    host: Host | None = None,
    *,
    bundle: BundleFacts | None = None,
    backends: Sequence[str] = (),
    on_step: Progress = silent,
) -> Facts:
    """Find out what there is. It never fails: what cannot be found out is a line of `Facts.unread`.

    Args:
        host: None is this machine.
        bundle: to ask each backend about, too.
        backends: those to load, each in a process of its own; empty loads all.
    """
    here, unread = host or Host(), Unread()
    system = SystemFacts("", "", here.machine, "", here.python, "", False, Processor(here.machine, ()), 1, None, None)
    board, packages, nvidia = None, PackageFacts(), NvidiaFacts()
    libraries: tuple[LibraryFacts, ...] = ()
    on_step("look at the system")
    with unread.probe("system"):
        system = system_facts(here)
    with unread.probe("board"):
        board = this_board(here.root)
    with unread.probe("packages"):
        packages = package_facts(here)
    loader = None
    with unread.probe("libraries"):
        loader = Loader(here)
        libraries = library_facts(here, loader)
    if loader is not None:
        with unread.probe("NVIDIA's driver"):
            nvidia = nvidia_facts(here, loader, DriverAnswer())
            nvidia = _with_gpus(nvidia) if here.is_here and nvidia.libcuda else nvidia
    facts = Facts(system, board, nvidia, packages, libraries, (), bundle, tuple(backends), dla=_dla(board, packages))
    if here.is_here:
        with unread.probe("backends"):
            facts = replace(facts, backends=_loaded(facts, backends or backend_names(), on_step))
    return replace(facts, unread=tuple(unread.lines))


def _dla(board: Board | None, packages: PackageFacts) -> str:
    """What is known of a board's DLA with the TensorRT that is installed, else with JetPack's."""
    if board is None:
        return ""
    has, version = board_has_dla(board.model), packages.version_of("tensorrt")
    version = version or ("" if board.jetpack is None else board.jetpack.tensorrt)
    known = dla_versions(version)
    if has is False:
        return "none on this board"
    if has is None or known is None:
        return "not known for this board and TensorRT"
    if not known.dla:
        return f"not with TensorRT {version}; with {DLA_VERSIONS}"
    return f"fp16{', int8' if known.pairs else ''} with TensorRT {version}: resnet-deploy build BUNDLE --dla 0"


def _with_gpus(nvidia: NvidiaFacts) -> NvidiaFacts:
    """The same, with what the driver says."""
    answer = Child([DRIVER, nvidia.libcuda]).answer()
    told = DriverAnswer(trouble=answer.problem) if answer.problem else msgspec.convert(answer.value, DriverAnswer)
    return replace(nvidia, cuda=told.cuda, gpus=told.gpus, trouble=told.trouble)


def _loaded(facts: Facts, names: Sequence[str], on_step: Progress) -> tuple[BackendFacts, ...]:
    """Each backend, loaded in a process of its own."""
    bundle = "" if facts.bundle is None else facts.bundle.path
    found: list[BackendFacts] = []
    running: list[tuple[str, Child]] = []

    def wait_for_first() -> None:
        name, child = running.pop(0)
        try:
            on_step(f"load {name}, for at most {TIMEOUT_S:g} s", len(found), len(names))
            found.append(_backend(name, child.answer(), facts.packages))
        finally:
            child.close()

    try:
        for name in names:
            running.append((name, Child([name, bundle], NO_CACHE)))
            if len(running) == TOGETHER:
                wait_for_first()
        while running:
            wait_for_first()
    finally:
        for _, child in running:  # of an interruption
            child.close()
    return tuple(found)


def _backend(name: str, answer: Answer, packages: PackageFacts) -> BackendFacts:
    told = BackendFacts(name, reason=answer.problem) if answer.problem else msgspec.convert(answer.value, BackendFacts)
    return replace(told, version=packages.version_of(*PACKAGES.get(name, (name,))) or told.version)
