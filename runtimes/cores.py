"""How many cores this process may really use: its affinity, and the quota of its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_V2, CGROUP_V1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """At least 1: the cores that the process may run on, no more than its container's share of processor time."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota() -> float | None:
    """The share of processor time of this container, in cores; None where there is no limit.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (version 1).
    """
    try:
        if CGROUP_V2.exists():
            most, period = CGROUP_V2.read_text().split()
        else:
            most, period = ((CGROUP_V1 / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
        return None if most in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
