"""The processor of this machine: its name, and those of its instructions that low precisions run on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimddp", "i8mm", "bf16", "sve")
INT8_DOT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Processor:
    """A processor, as Linux describes it.

    Attributes:
        name: what it calls itself, or the machine's architecture.
        flags: those of `X86_FLAGS` and `ARM_FLAGS` that every core has, by the kernel's names.
    """

    name: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.flags) or 'no flags known'})"

    @property
    def has_int8_dot(self) -> bool:
        """Does it sum products of 8-bit integers in 32 bits (VNNI, AMX, ARM's dot product)?

        Without, x86 sums two of them in 16 bits, which saturate (`vpmaddubsw`; Intel's Software Developer's Manual,
        volume 2).
        """
        return not INT8_DOT.isdisjoint(self.flags)

    @property
    def has_bf16(self) -> bool:
        """Does it multiply in BF16?"""
        return not BF16.isdisjoint(self.flags)


@cache
def processor() -> Processor:
    """The processor of this machine. On ARM it is often known by its architecture alone; elsewhere than on Linux no
    flags are known."""
    try:
        text = CPUINFO.read_text(errors="replace")
    except OSError:
        text = ""
    return processor_from_cpuinfo(text, platform.machine())


def processor_from_cpuinfo(text: str, machine: str) -> Processor:
    """Read the text of `/proc/cpuinfo`; `machine` is the name where it gives none (`aarch64`).

    Source: the kernel's arch/x86/kernel/cpu/proc.c and arch/arm64/kernel/cpuinfo.c.
    """
    names, cores = [], []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            names.append(value)
        elif key in ("flags", "Features"):
            cores.append(set(value.split()))
    everywhere = set.intersection(*cores) if cores else set()  # cores may differ, and threads move between them
    return Processor(next(filter(None, names), machine), tuple(f for f in X86_FLAGS + ARM_FLAGS if f in everywhere))
