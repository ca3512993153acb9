"""Which Jetson this is, and what its JetPack brought: the table of releases, and where each row is from.

Nothing here was read on a board: the rows are of the sources that they name.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
RELEASE = "etc/nv_tegra_release"
MODELS = ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/devices/soc0/machine")
"""Where the board's name may stand. Docker hides the second, which the first is a link to."""
ARCHIVE = (
    "NVIDIA's JetPack archive, as jetson-containers and others quote it (developer.nvidia.com/embedded/jetpack-archive)"
)
META_TEGRA = "OE4T/meta-tegra, the recipes of that L4T release"
CONTAINERS = "dusty-nv/jetson-containers, l4t_version.py"
RECORDED = "boards' owners, who recorded dpkg's answers (Orin Nano, 2026-09)"
OLDEST_TENSORRT = (10, 3)
"""The first TensorRT that takes our graphs."""


@dataclass(frozen=True)
class JetPack:
    """A JetPack release.

    Attributes:
        name: for example `6.2.1`.
        l4t: the release of Jetson Linux that it is made of, for example `36.4.4`.
        ubuntu, python, cuda, cudnn, tensorrt: the versions that it brings; Python is the system's, for which alone
            TensorRT's bindings are made.
        targets: the compute capabilities of the boards that it runs on, for example `sm87`.
        source: where the row is from.
    """

    name: str
    l4t: str
    ubuntu: str
    python: str
    cuda: str
    cudnn: str
    tensorrt: str
    targets: tuple[str, ...]
    source: str

    @property
    def takes_our_graphs(self) -> bool:
        """Is its TensorRT new enough for them?"""
        return _numbers(self.tensorrt)[:2] >= OLDEST_TENSORRT


_ON_20_04 = ("20.04", "3.8", "11.4")
_ON_22_04 = ("22.04", "3.10", "12.6", "9.3", "10.3.0")
_ON_24_04 = ("24.04", "3.12")
_ORIN, _THOR, _XAVIER_AND_ORIN = ("sm87",), ("sm110",), ("sm72", "sm87")
_CUDA_13_0 = ("13.0", "9.12", "10.13.3")

JETPACKS = (
    JetPack("5.0.2", "35.1.0", *_ON_20_04, "8.4.1", "8.4.1", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1", "35.2.1", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.1", "35.3.1", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.2", "35.4.1", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.3", "35.5.0", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.4", "35.6.0", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.5", "35.6.1", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, ARCHIVE),
    JetPack("5.1.6", "35.6.4", *_ON_20_04, "8.6.0", "8.5.2", _XAVIER_AND_ORIN, META_TEGRA),
    JetPack("6.0", "36.3.0", "22.04", "3.10", "12.2", "8.9.4", "8.6.2", _ORIN, ARCHIVE),
    JetPack("6.1", "36.4.0", *_ON_22_04, _ORIN, "pytorch/TensorRT, getting_started/jetpack.rst"),
    JetPack("6.2", "36.4.3", *_ON_22_04, _ORIN, f"{CONTAINERS}; {META_TEGRA}"),
    JetPack("6.2.1", "36.4.4", *_ON_22_04, _ORIN, CONTAINERS),
    JetPack("6.2.2", "36.5.0", *_ON_22_04, _ORIN, META_TEGRA),
    JetPack("7.0", "38.2.0", *_ON_24_04, *_CUDA_13_0, _THOR, f"{META_TEGRA}; {ARCHIVE}"),
    JetPack("7.1", "38.4.0", *_ON_24_04, *_CUDA_13_0, _THOR, META_TEGRA),
    JetPack("7.2", "39.2.0", *_ON_24_04, "13.2", "9.20", "10.16.2", ("sm87", "sm110"), META_TEGRA),
    JetPack("7.2.1", "39.2.1", *_ON_24_04, "13.2", "9.20", "10.16.2", ("sm87", "sm110"), RECORDED),
)
"""Oldest first."""

FAMILIES = (
    ("AGX Orin", "sm87"),
    ("Orin NX", "sm87"),
    ("Orin Nano", "sm87"),
    ("AGX Xavier", "sm72"),
    ("Xavier NX", "sm72"),
    ("Thor", "sm110"),
    ("Orin", "sm87"),
    ("Xavier", "sm72"),
    ("TX2", "sm62"),
    ("TX1", "sm53"),
    ("Nano", "sm53"),
)
"""What a board's name holds, and its GPU's compute capability (NVIDIA's CUDA GPUs list; of Thor: meta-tegra)."""


@dataclass(frozen=True)
class Board:
    """A Jetson, as it describes itself.

    Attributes:
        model: its name in the device tree; empty where that cannot be read, as in most containers.
        l4t: its release of Jetson Linux, for example `36.4.3`; empty where it cannot be read.
        jetpack: the newest release of `JETPACKS` that is not newer than `l4t`; None where `l4t` is older than all, of
            another generation, or unknown.
    """

    model: str
    l4t: str
    jetpack: JetPack | None

    @property
    def family(self) -> str:
        """Which of `FAMILIES` it is, for example `Orin Nano`; empty for an unknown one."""
        return next((name for name, _ in FAMILIES if name in self.model), "")

    @property
    def target(self) -> str | None:
        """The compute capability of its GPU, for example `sm87`; None for an unknown board."""
        return dict(FAMILIES).get(self.family)

    @property
    def is_exact(self) -> bool:
        """Is `jetpack` this very release, and not one before it?"""
        return self.jetpack is not None and self.jetpack.l4t == self.l4t


def board_name(root: Path = ROOT) -> str:
    """The name that the board has in the device tree, such as `NVIDIA Jetson AGX Orin Developer Kit`; empty where the
    system has none.

    Args:
        root: where `proc` and `sys` are.
    """
    return next((name for path in MODELS if (name := _text(root / path).strip("\0\n "))), "")


def this_board(root: Path = ROOT) -> Board | None:
    """The Jetson that this runs on; None elsewhere.

    Args:
        root: where `etc`, `proc` and `sys` are.
    """
    l4t = l4t_from_text(_text(root / RELEASE))
    model = board_name(root)
    if not l4t and "Jetson" not in model:
        return None
    return Board(model, l4t, jetpack_of(l4t))


def l4t_from_text(text: str) -> str:
    """The release in the text of `/etc/nv_tegra_release`: `36.4.3` of `# R36 (release), REVISION: 4.3, ...`; empty
    where it holds none."""
    found = re.search(r"\bR(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return "" if found is None else ".".join([found[1], *[*found[2].split("."), "0"][:2]])


def jetpack_of(l4t: str) -> JetPack | None:
    """The newest JetPack of the same generation (L4T's first number) that is not newer; None where there is none."""
    if not l4t:
        return None
    here = _numbers(l4t)
    older = [one for one in JETPACKS if _numbers(one.l4t)[0] == here[0] and _numbers(one.l4t) <= here]
    return older[-1] if older else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
