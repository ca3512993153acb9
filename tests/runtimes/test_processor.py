"""The processor is read as Linux describes it."""

from __future__ import annotations

from pathlib import Path

import pytest

import runtimes.processor
from runtimes.processor import Processor, processor, processor_from_cpuinfo

SAPPHIRE_RAPIDS = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse2 avx avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8
vmx flags\t: ept vpid

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse2 avx avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8
"""
ROME = "model name\t: AMD EPYC 7B12\nflags\t\t: fpu sse2 avx avx2\n"
ALDER_LAKE = "model name\t: 12th Gen Intel(R) Core(TM) i7-1260P\nflags\t\t: avx2 avx_vnni\n"
ORIN = """processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd aes crc32 atomics fphp asimdhp asimddp
CPU part\t: 0xd42
"""
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\nCPU implementer\t: 0x41\n"
OLD_ARM = "Features\t: fp asimd aes crc32\n"
TWO_KINDS = "Features\t: fp asimd asimddp\n\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "name", "flags", "int8", "bf16"),
    [
        (
            SAPPHIRE_RAPIDS,
            "Intel(R) Xeon(R) Platinum 8488C",
            ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
            True,
            True,
        ),
        (ROME, "AMD EPYC 7B12", ("avx2",), False, False),
        (ALDER_LAKE, "12th Gen Intel(R) Core(TM) i7-1260P", ("avx2", "avx_vnni"), True, False),
        (ORIN, "ARMv8 Processor rev 1 (v8l)", ("asimddp",), True, False),
        (GRAVITON3, "riscv", ("asimddp", "i8mm", "bf16", "sve"), True, True),
        (OLD_ARM, "riscv", (), False, False),
        (TWO_KINDS, "riscv", (), False, False),
        ("", "riscv", (), False, False),
        ("flags\nmodel name :\n\x00: :", "riscv", (), False, False),
    ],
    ids=["amx", "avx2", "avx-vnni", "orin", "graviton 3", "old arm", "cores differ", "nothing", "nonsense"],
)
def test_the_name_and_the_flags_that_every_core_has(
    text: str, name: str, flags: tuple[str, ...], int8: bool, bf16: bool
) -> None:
    found = processor_from_cpuinfo(text, "riscv")
    assert (found.name, found.flags) == (name, flags)
    assert (found.has_int8_dot, found.has_bf16) == (int8, bf16)


def test_it_reads_as_one_line() -> None:
    assert str(Processor("AMD EPYC", ("avx2", "avx512_vnni"))) == "AMD EPYC (avx2, avx512_vnni)"
    assert str(Processor("riscv", ())) == "riscv (no flags known)"


def test_this_machine_has_one_also_where_linux_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor.cache_clear()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        assert all(flag in text.split() for flag in processor().flags)
    processor.cache_clear()
    monkeypatch.setattr(runtimes.processor, "CPUINFO", tmp_path / "nothing")
    assert processor().name
    assert processor().flags == ()
    processor.cache_clear()
