"""Rules on Jetsons: a JetPack that is too old, and a TensorRT that this Python does not see."""

from __future__ import annotations

from collections.abc import Iterator

from runtimes.doctor.facts import Facts
from runtimes.doctor.rule import Case, Rule

ENVIRONMENT = "python3 -m venv --system-site-packages ~/resnet"
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
SYSTEM_FOLDER = "/usr/lib/python3"
"""Where Debian's packages for Python lie; pip's lie in /usr/local or an environment."""
OLDEST_GENERATION = 36
"""L4T's of JetPack 6."""


def _generation(facts: Facts) -> int | None:
    """The first number of L4T; None elsewhere than on a board, or where it is unknown."""
    if facts.board is None or not facts.board.l4t:
        return None
    return int(facts.board.l4t.split(".")[0])


def _too_old(facts: Facts) -> Iterator[Case]:
    board, generation = facts.board, _generation(facts)
    if board is None or generation is None:
        return
    if board.jetpack is not None and board.jetpack.takes_our_graphs:
        return
    if board.jetpack is None and generation >= OLDEST_GENERATION:
        return
    brings = f" (JetPack {board.jetpack.name}, TensorRT {board.jetpack.tensorrt})" if board.jetpack else ""
    remedy = "flash JetPack 6.2.1 or newer with NVIDIA's SDK Manager"
    if board.target not in (None, "sm87", "sm110"):
        remedy = f"none: JetPack 5 is the last for {board.family}; run on its processor with --backend onnxruntime"
    yield Case(f"L4T {board.l4t}{brings} is too old: TensorRT 10.3 or newer is needed", remedy, "tensorrt")


def _is_new_enough(facts: Facts) -> bool:
    return facts.board is not None and not list(_too_old(facts))


def _hidden(facts: Facts) -> Iterator[Case]:
    if _is_new_enough(facts) and facts.packages.board_tensorrt and not facts.packages.version_of(*TENSORRT):
        yield Case(
            f"JetPack's TensorRT is in {facts.packages.board_tensorrt}, where this environment does not look",
            f"make it anew, so that it sees the system's packages: {ENVIRONMENT}",
            "tensorrt",
        )


def _other_python(facts: Facts) -> Iterator[Case]:
    jetpack = None if facts.board is None else facts.board.jetpack
    if jetpack is not None and jetpack.takes_our_graphs:
        here = ".".join(facts.system.python.split(".")[:2])
        if here != jetpack.python:
            yield Case(
                f"this is Python {here}, and JetPack {jetpack.name} has TensorRT for Python {jetpack.python} alone",
                f"use the system's: /usr/bin/{ENVIRONMENT}",
                "tensorrt",
            )


def _not_installed(facts: Facts) -> Iterator[Case]:
    packages = facts.packages
    if _is_new_enough(facts) and not packages.board_tensorrt and not packages.version_of(*TENSORRT):
        yield Case(
            "TensorRT's package for Python is not installed on this board",
            f"sudo apt-get install python3-libnvinfer, and: {ENVIRONMENT}",
            "tensorrt",
        )


def _unknown_release(facts: Facts) -> Iterator[Case]:
    board, generation = facts.board, _generation(facts)
    if board is None or generation is None or generation < OLDEST_GENERATION or board.is_exact:
        return
    near = f"; the nearest known is {board.jetpack.l4t}, JetPack {board.jetpack.name}" if board.jetpack else ""
    yield Case(f"L4T {board.l4t} is not in the table of JetPack releases{near}")


def _servers_tensorrt(facts: Facts) -> Iterator[Case]:
    if _generation(facts) != OLDEST_GENERATION:
        return
    for one in facts.packages.installed:
        if one.name in TENSORRT and not one.folder.startswith(SYSTEM_FOLDER):
            yield Case(
                f"{one.name} {one.version} in {one.folder} is for servers, and no board of JetPack 6 runs it",
                f"pip uninstall {one.name}, and use JetPack's: {ENVIRONMENT}",
                "tensorrt",
            )


RULES = (
    Rule("DR201", "error", "a JetPack that is too old", _too_old),
    Rule("DR202", "error", "an environment that does not see JetPack's TensorRT", _hidden),
    Rule("DR203", "error", "another Python than JetPack's", _other_python),
    Rule("DR204", "warning", "a board without TensorRT's package for Python", _not_installed),
    Rule("DR205", "note", "an L4T release that is not in the table of JetPacks", _unknown_release),
    Rule("DR206", "error", "a server's TensorRT on a board with JetPack 6", _servers_tensorrt),
)
