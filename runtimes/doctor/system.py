"""The machine without its GPU: distribution, kernel, container, processor and memory."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator

from runtimes.board.memory import memory
from runtimes.cores import usable_cores
from runtimes.doctor.facts import SystemFacts
from runtimes.doctor.host import Host
from runtimes.processor import processor_from_cpuinfo

CONTAINERS = (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman"))
GROUP_WORDS = ("docker", "kubepods", "containerd", "lxc", "libpod")
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit of a control group's memory and what it uses, of version 2 and of version 1. A group without a limit has
the word `max`, or a number larger than any memory."""


def system_facts(host: Host) -> SystemFacts:
    """Describe the machine; what it does not tell is left empty."""
    total, free = memory_of(host)
    cpuinfo = host.text("/proc/cpuinfo")
    return SystemFacts(
        name=distribution(host.text("/etc/os-release") or host.text("/usr/lib/os-release")),
        kernel=kernel_of(host),
        machine=host.machine,
        libc=" ".join(filter(None, platform.libc_ver())) if host.is_here else "",
        python=host.python,
        container=container_of(host),
        wsl=is_wsl(host),
        processor=processor_from_cpuinfo(cpuinfo, host.machine),
        cores=usable_cores(host.root) if host.is_here else len(re.findall(r"^processor\s*:", cpuinfo, re.M)),
        memory_bytes=total,
        free_bytes=free,
        executable=host.executable,
    )


def distribution(text: str) -> str:
    """The name in the text of `/etc/os-release` (os-release(5)); empty where it holds none."""
    found = dict(re.findall(r"^([A-Z_]+)=[\"']?([^\"'\n]*)", text, re.M))
    return found.get("PRETTY_NAME") or " ".join(filter(None, (found.get("NAME"), found.get("VERSION_ID"))))


def kernel_of(host: Host) -> str:
    """The kernel's release, for example `5.15.148-tegra`."""
    told = host.text("/proc/sys/kernel/osrelease").strip()
    if told:
        return told
    found = re.search(r"Linux version (\S+)", host.text("/proc/version"))
    if found is not None:
        return found[1]
    return platform.release() if host.is_here else ""


def container_of(host: Host) -> str:
    """What made this container; empty where nothing says that it is one."""
    for path, name in CONTAINERS:
        if host.exists(path):
            return name
    group = host.text("/proc/1/cgroup")
    return next((word for word in GROUP_WORDS if word in group), "")


def is_wsl(host: Host) -> bool:
    """Is it Linux inside of Windows? WSL's kernels are named after Microsoft, and its driver's libraries lie in a
    folder of their own."""
    return "microsoft" in host.text("/proc/version").lower() or host.exists("/usr/lib/wsl/lib")


def memory_of(host: Host) -> tuple[int | None, int | None]:
    """All memory, and what is free for this process: what the kernel says, no more than the control group's limit."""
    said = memory(host.root)
    total, free = (None, None) if said is None else (said.total_bytes, said.available_bytes)
    for limit, used in _limits(host):
        if total is None or limit < total:
            total = limit
            free = max(0, limit - used) if free is None else min(free, max(0, limit - used))
    return total, free


def _limits(host: Host) -> Iterator[tuple[int, int]]:
    for limit, used in LIMITS:
        numbers = host.text(limit).strip(), host.text(used).strip()
        if all(one.isdecimal() for one in numbers):
            yield int(numbers[0]), int(numbers[1])
