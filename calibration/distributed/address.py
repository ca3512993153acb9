"""Where workers of Ray are wanted, in words that need no Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class RayRequest:
    """Where workers are wanted.

    Attributes:
        address: `local`, `auto`, `HOST:PORT` of a cluster that this machine is part of, or `ray://HOST:PORT`.
        workers: how many, for `local`; None takes one for each core that this process may use.
        gpus: of each worker; None takes one where the task needs one.
    """

    address: str
    workers: int | None = None
    gpus: float | None = None


def address_of(text: str) -> tuple[str, int] | None:
    """The host and port of `HOST:PORT`, `[IPv6]:PORT` or `ray://HOST:PORT`; None for anything else."""
    found = re.fullmatch(r"(?:ray://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        return None
    return found[1].strip("[]"), int(found[2])
