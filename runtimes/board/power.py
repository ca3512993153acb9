"""A Jetson's power mode, clocks and temperatures: read, recorded beside what was built or measured, never changed.

Sources: nvpmodel's own files (`/var/lib/nvpmodel/status`, `/etc/nvpmodel.conf`), and the kernel's
Documentation/admin-guide/pm/cpufreq.rst, ABI/testing/sysfs-class-devfreq and ABI/testing/sysfs-class-thermal.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimes.board.jetpack import this_board

ROOT = Path("/")
STATUS, MODES = "var/lib/nvpmodel/status", "etc/nvpmodel.conf"
PROCESSORS, DEVICES, ZONES = "sys/devices/system/cpu/cpufreq", "sys/class/devfreq", "sys/class/thermal"
MODE_LINE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
GPU_NAMES = ("gpu", "ga10b", "gb10b")
"""What the names of a Jetson's GPU among the devices with a clock hold: `17000000.gpu`, `gpu-gpc-0`."""
QUERY = ("nvpmodel", "-q")
QUERY_S = 5.0


@dataclass(frozen=True)
class Clock:
    """A clock, in MHz: what it is now, and the limits it is kept within. `hardware_mhz` is the most that it can be."""

    name: str
    mhz: int
    lowest_mhz: int
    highest_mhz: int
    hardware_mhz: int

    @property
    def is_locked(self) -> bool:
        return self.lowest_mhz == self.highest_mhz


@dataclass(frozen=True)
class Power:
    """In which state a Jetson is.

    Attributes:
        mode: nvpmodel's, by name; empty where it cannot be read.
        full_mode: the mode without a limit, or with the highest; empty where that is not known. `full_id`: its number.
        temperatures_c: of each zone that can be read, in degrees Celsius.
    """

    mode: str
    full_mode: str
    full_id: int | None
    clocks: tuple[Clock, ...]
    temperatures_c: dict[str, float]

    @property
    def problem(self) -> str:
        """What makes it slower than it could be, and the commands against that; empty where nothing does."""
        said = []
        if self.mode and self.full_mode and self.mode != self.full_mode:
            said.append(f"power mode {self.mode}, not {self.full_mode} (sudo nvpmodel -m {self.full_id})")
        free = [one.name for one in self.clocks if not one.is_locked]
        if free:
            said.append(f"the clocks of {' and '.join(free)} are not locked (sudo jetson_clocks)")
        return "; ".join(said)

    def __str__(self) -> str:
        clocks = [f"{one.name} {one.mhz} of {one.highest_mhz} MHz" for one in self.clocks]
        hottest = [f"{max(self.temperatures_c.values()):.0f} C"] if self.temperatures_c else []
        return ", ".join([f"power mode {self.mode or 'unknown'}", *clocks, *hottest])


def power(root: Path = ROOT) -> Power | None:
    """The state of the Jetson that this runs on; None elsewhere. What it does not tell is left empty.

    Args:
        root: where `proc`, `sys`, `etc` and `var` are; nvpmodel itself is asked for `/` alone.
    """
    if this_board(root) is None:
        return None
    modes = {int(number): name for number, name in MODE_LINE.findall(_text(root / MODES))}
    full = _full_mode(modes)
    return Power(
        mode=(_asked() if root == ROOT else "") or _recorded(root, modes),
        full_mode="" if full is None else modes[full],
        full_id=full,
        clocks=(*_processor_clocks(root), *_gpu_clocks(root)),
        temperatures_c=dict(_temperatures(root)),
    )


def _asked() -> str:
    """What `nvpmodel -q` says: `NV Power Mode: 15W`, and the mode's number on the next line."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"NV Power Mode: *(\S+)", done.stdout)
    return found[1] if found else ""


def _recorded(root: Path, modes: dict[int, str]) -> str:
    """What nvpmodel has written down: `pmode:0002`."""
    found = re.search(r"pmode:(\d+)", _text(root / STATUS))
    return modes.get(int(found[1]), found[1]) if found else ""


def _full_mode(modes: dict[int, str]) -> int | None:
    """The number of the mode without a limit, MAXN_SUPER or else MAXN, or of the one with the most watts. Modes are
    numbered in no such order: MAXN_SUPER of an Orin Nano is 2."""
    for name in ("MAXN_SUPER", "MAXN"):
        for number in sorted(modes):
            if modes[number].upper().startswith(name):
                return number
    watts = {number: int(found[1]) for number, name in modes.items() if (found := re.search(r"(\d+)W", name))}
    return max(watts, key=lambda number: watts[number]) if watts else None


def _processor_clocks(root: Path) -> Iterator[Clock]:
    """One for all cores: the slowest group of those that share a clock, and the limits that are furthest apart."""
    found = [
        numbers
        for path in sorted((root / PROCESSORS).glob("policy*"))
        if (numbers := _numbers(path, "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq"))
    ]
    if found:
        now, lowest, highest, hardware = zip(*found, strict=True)
        yield Clock("CPU", min(now) // 1000, min(lowest) // 1000, max(highest) // 1000, max(hardware) // 1000)


def _gpu_clocks(root: Path) -> Iterator[Clock]:
    for path in sorted((root / DEVICES).glob("*")):
        found = _numbers(path, "cur_freq", "min_freq", "max_freq")
        if found and any(word in path.name for word in GPU_NAMES):
            now, lowest, highest = (number // 10**6 for number in found)
            steps = [int(word) // 10**6 for word in _text(path / "available_frequencies").split() if word.isdecimal()]
            yield Clock("GPU", now, lowest, highest, max([highest, *steps]))
            return


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for path in sorted((root / ZONES).glob("thermal_zone*")):
        found = re.fullmatch(r"-?\d+", _text(path / "temp").strip())  # a zone that is off gives an error
        if found:
            yield _text(path / "type").strip() or path.name, int(found[0]) / 1000


def _numbers(folder: Path, *names: str) -> tuple[int, ...]:
    """The numbers in these files; none if one has none."""
    texts = [_text(folder / name).strip() for name in names]
    return tuple(map(int, texts)) if all(text.isdecimal() for text in texts) else ()


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""
