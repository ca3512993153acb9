"""The doctor's page: what there is in groups, and below it what is wrong, with its remedy."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtimes.doctor.bundle_rules import builds, size_text
from runtimes.doctor.facts import BackendFacts, Facts
from runtimes.doctor.precisions import instructions_text, precisions_of
from runtimes.doctor.rule import Finding
from runtimes.printable import count_text

LABEL, NARROWEST, WIDEST = 11, 60, 100
COLUMNS = (14, 13, 17)
SHOWN = ("numpy", "onnx", "cuda-bindings", "cuda-python")
OF_BACKENDS = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
"""Shown where there is no table of backends, which has their versions."""


@dataclass(frozen=True)
class Line:
    """A line of the page; `style` is `plain`, `head`, `remedy`, or a finding's severity."""

    text: str
    style: str = "plain"


def page(facts: Facts, findings: Sequence[Finding], width: int) -> list[Line]:
    """The page's lines, at most `width` columns wide, but at least 60 and at most 100; remedies are up to 100 wide."""
    columns = min(max(width, NARROWEST), WIDEST)
    lines: list[Line] = []
    for name, said in (*_system(facts), *_nvidia(facts), *_packages(facts), *_bundle(facts)):
        lines += _row(name, said, columns)
    if facts.backends:
        lines += [Line(""), *_table(facts, columns)]
    lines += [Line("")]
    for one in findings:
        lines += _finding(one, columns)
    for said in facts.unread:
        lines += _wrapped(f"could not find out: {said}", columns, "", "  ", "note")
    return [*lines, Line(_closing(findings), "head")]


def _row(name: str, said: str, columns: int) -> list[Line]:
    return _wrapped(said, columns, f"{name:<{LABEL}}", " " * LABEL)


def _wrapped(text: str, columns: int, first: str, later: str, style: str = "plain") -> list[Line]:
    lines = textwrap.wrap(
        text, columns, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return [Line(line, style) for line in lines]


def _system(facts: Facts) -> Iterator[tuple[str, str]]:
    system = facts.system
    words = [system.name, f"Linux {system.kernel}".strip() if system.kernel else "", system.machine, system.libc]
    if system.wsl:
        words.append("in WSL")
    if system.container:
        words.append(f"in a container ({system.container})")
    yield "system", ", ".join(filter(None, words)) or "unknown"
    yield "python", ", ".join(filter(None, (system.python, system.executable)))
    name = system.processor.name
    yield "processor", f"{name}, {count_text(system.cores, 'core')}; {instructions_text(facts)}"
    if system.memory_bytes is not None:
        free = "" if system.free_bytes is None else f"{size_text(system.free_bytes)} free of "
        yield "memory", f"{free}{size_text(system.memory_bytes)}"
    if facts.board is not None:
        yield from _board(facts)
        yield "dla", facts.dla


def _board(facts: Facts) -> Iterator[tuple[str, str]]:
    board = facts.board
    assert board is not None
    yield "board", ", ".join(filter(None, (board.model or "a Jetson that hides its name", board.target)))
    if board.jetpack is None:
        yield "jetpack", f"unknown, L4T {board.l4t or 'unknown'}"
        return
    one, later = board.jetpack, "" if board.is_exact else " or newer"
    yield (
        "jetpack",
        f"{one.name}{later}, L4T {board.l4t}: brings TensorRT {one.tensorrt}, CUDA {one.cuda}, cuDNN {one.cudnn}, "
        f"Python {one.python}",
    )


def _nvidia(facts: Facts) -> Iterator[tuple[str, str]]:
    nvidia = facts.nvidia
    version = nvidia.module or nvidia.libcuda_version
    parts = [version, f"CUDA up to {nvidia.cuda}" if nvidia.cuda else "", nvidia.libcuda]
    yield "driver", ", ".join(filter(None, parts)) or "none of NVIDIA's"
    for gpu in nvidia.gpus:
        free = "" if gpu.free_bytes is None else f", {size_text(gpu.free_bytes)} free"
        yield "gpu", f"{gpu.name}, {gpu.target}, {size_text(gpu.memory_bytes)}{free}"
    if not nvidia.gpus:
        yield "gpu", "none that answers" if nvidia.is_there else "none of NVIDIA's"
    cudnn = facts.packages.version_of("nvidia-cudnn", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12") or nvidia.cudnn
    toolkit = nvidia.toolkit or facts.packages.version_of("cuda-toolkit")
    found = [f"{name} {number}" for name, number in (("CUDA", toolkit), ("cuDNN", cudnn)) if number]
    if found:
        yield "libraries", ", ".join(found)


def _packages(facts: Facts) -> Iterator[tuple[str, str]]:
    names = SHOWN if facts.backends else (*SHOWN, *OF_BACKENDS)
    here = [f"{one.name} {one.version}" for one in facts.packages.installed if one.name in names]
    yield "packages", ", ".join(here) or "none that matter"


def _bundle(facts: Facts) -> Iterator[tuple[str, str]]:
    bundle = facts.bundle
    if bundle is None:
        return
    yield "bundle", f"{bundle.path}: {bundle.name}, {bundle.precision} for {bundle.target}, batch {bundle.batch}"
    if bundle.target == "tensorrt":
        free = "" if bundle.free_disk_bytes is None else f"; {size_text(bundle.free_disk_bytes)} of disk are free"
        yield (
            "",
            f"an engine's build takes about {size_text(bundle.memory_bytes)} of memory, {size_text(bundle.disk_bytes)} "
            f"of disk{free}",
        )


def _table(facts: Facts, columns: int) -> Iterator[Line]:
    yield Line(_cells("backend", "version", "here", "precisions"), "head")
    for one in facts.backends:
        told = precisions_of(facts, one) if one.runs or builds(facts, one.name) else {}
        said = ", ".join(f"{name} ({how})" if how else name for name, how in told.items())
        first = _cells(one.name, one.version or "-", _here(facts, one), "")
        yield from _wrapped(said, columns, first, " " * sum(COLUMNS)) or [Line(first.rstrip())]


def _cells(*words: str) -> str:
    return "".join(f"{word:<{size}}" for word, size in zip(words, (*COLUMNS, 0), strict=True))


def _here(facts: Facts, one: BackendFacts) -> str:
    if one.runs and one.name == "triton":
        return "asks a server"
    if one.runs:
        return "runs" + (f" on {', '.join(one.where)}" if one.where else "")
    if builds(facts, one.name):
        return "builds alone"
    if one.loads:
        return "does not run"
    return "does not load" if one.version or one.broke else "not installed"


def _finding(one: Finding, columns: int) -> Iterator[Line]:
    indent = " " * 16
    yield from _wrapped(one.text, columns, f"{one.severity:<9}{one.rule:<7}", indent, one.severity)
    for step in one.remedy.splitlines():  # a command that is broken at the terminal's edge alone can be copied
        yield from _wrapped(step, WIDEST, f"{'':<9}-> ", f"{'':<12}", "remedy")


def _closing(findings: Sequence[Finding]) -> str:
    counts = [
        count_text(number, noun)
        for noun in ("error", "warning", "note")
        if (number := sum(one.severity == noun for one in findings))
    ]
    return ", ".join(counts) or "nothing is wrong"
