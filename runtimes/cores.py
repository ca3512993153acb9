"""How many cores this process may really use: its affinity, and the quotas of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
GROUPS, MOUNT = "proc/self/cgroup", "sys/fs/cgroup"
NO_LIMIT = ("max", "-1")


def usable_cores(root: Path = ROOT) -> int:
    """At least 1: the cores that this process may run on, no more than its share of processor time, rounded up.

    Args:
        root: where `proc` and `sys` are.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The limits on processor time, in cores, of this process's control group and of the groups around it.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (version 1).
    """
    for folder in _group_folders(root):
        for read in (_limit_of_version_2, _limit_of_version_1):
            try:
                most, period = read(folder)
                if most not in NO_LIMIT:
                    yield int(most) / int(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue  # no limit that can be read


def _group_folders(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups: the root of version 2's tree and of version 1's for the processor,
    and each group below them that it is in.

    In a container the path that the kernel gives may be the host's, of which nothing is mounted but the group itself,
    as the root.
    """
    tree_2 = root / MOUNT
    tree_1 = tree_2 / "cpu"
    yield from (tree_2, tree_1)
    try:
        lines = (root / GROUPS).read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")  # of "4:cpu,cpuacct:/a/b", or "0::/a/b"
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = PurePosixPath(path.lstrip("/")).parts
        if ".." not in parts:  # of a group outside of what this process sees
            yield from (
                (tree_1 if controllers else tree_2).joinpath(*parts[:count]) for count in range(1, len(parts) + 1)
            )


def _limit_of_version_2(folder: Path) -> tuple[str, str]:
    most, period = (folder / "cpu.max").read_text().split()
    return most, period


def _limit_of_version_1(folder: Path) -> tuple[str, str]:
    most, period = ((folder / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
    return most, period
