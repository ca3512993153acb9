"""Which TensorRT runs networks on a Jetson's DLA, and which board has one: NVIDIA's word, none of it seen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Version = tuple[int, int, int]
BOARDS: Mapping[str, bool] = MappingProxyType({"Orin Nano": False, "Orin NX": True, "AGX Orin": True, "Thor": False})
"""A part of a board's name -> has it a DLA? NVIDIA's answers to questions about DLA (its developer blog) name AGX Orin
and Orin NX of this generation, and so not Orin Nano; TensorRT 11.4.1, "Working with DLA", says that Thor has none."""
NEWEST_KNOWN: Version = (11, 4, 1)
INT8_DLA_VERSIONS = "TensorRT from 11.4.1 on (AGX Orin, JetPack 7.2.2)"
DLA_VERSIONS = "TensorRT up to 10.7 (JetPack 6), or from 11.4.1 on (AGX Orin, JetPack 7.2.2)"


@dataclass(frozen=True)
class DlaVersions:
    """A stretch of TensorRT versions on Linux.

    Attributes:
        first, last: both included; `last` is None for the newest known and those after it.
        dla: do they run networks on DLA?
        pairs: does their DLA take the Q/DQ pairs of an INT8 graph?
        source: where NVIDIA says so.
    """

    first: Version
    last: Version | None
    dla: bool
    pairs: bool
    source: str


TABLE = (
    DlaVersions(
        (10, 0, 0),
        (10, 7, 999),
        dla=True,
        pairs=False,
        source="TensorRT 11.3.0, 'Working with DLA': 10.7 was the last release that supported DLA; "
        "NVIDIA/Deep-Learning-Accelerator-SW, tools/qdq-translator: Q/DQ pairs become implicit scales first",
    ),
    DlaVersions(
        (10, 8, 0),
        (11, 3, 999),
        dla=False,
        pairs=False,
        source="TensorRT 11.3.0, 'Working with DLA': not supported in 11.0 to 11.3; 10.7 was the last that was",
    ),
    DlaVersions(
        (11, 4, 0),
        (11, 4, 0),
        dla=False,
        pairs=False,
        source="TensorRT 11.4.0, 'Working with DLA': not for Linux SBSA and JetPack, only for Windows on ARM",
    ),
    DlaVersions(
        NEWEST_KNOWN,
        None,
        dla=True,
        pairs=True,
        source="TensorRT 11.4.1, 'Working with DLA': AGX Orin with JetPack 7.2.2 or newer; 'Strongly Typed Networks "
        "for DLA': tensor types alone decide the precision",
    ),
)


def dla_versions(version: str) -> DlaVersions | None:
    """The stretch of `TABLE` with this version, such as `10.3.0.30`; None for one that is older than all."""
    numbers = [int(part) for part in version.split(".")[:3] if part.isdecimal()]
    key = (*numbers, 0, 0, 0)[:3]
    return next((one for one in TABLE if one.first <= key and (one.last is None or key <= one.last)), None)


def board_has_dla(name: str) -> bool | None:
    """Has the board of this name a DLA? None for one that is not in `BOARDS`."""
    return next((has for part, has in BOARDS.items() if part.lower() in name.lower()), None)


def dla_refusal(version: str, board: str, precision: str) -> str:
    """Why this TensorRT on this board is known not to run a network on DLA, and what to do; empty if it is not known.

    Args:
        version: of TensorRT, `10.3.0.30`.
        board: its name by `runtimes.board.jetpack.board_name`; empty where it is not known.
        precision: the bundle's.
    """
    known = dla_versions(version)
    if board_has_dla(board) is False:
        return f"{board} has no DLA (Jetson AGX Orin and Orin NX have one); leave out --dla"
    if known is not None and not known.dla:
        return f"TensorRT {version} has no DLA: it takes {DLA_VERSIONS}; leave out --dla, or change JetPack"
    if known is not None and precision == "int8" and not known.pairs:
        return (
            f"the DLA of TensorRT {version} takes no Q/DQ pairs, in which an int8 bundle holds its scales; export the "
            "model with --fp16 for it, or leave out --dla"
        )
    return ""
