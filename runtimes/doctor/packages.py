"""Installed packages, read from their metadata: none is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from runtimes._plugins import OWN_PACKAGES
from runtimes.doctor.facts import Package, PackageFacts
from runtimes.doctor.host import Host

OURS = "resnet-export"
KNOWN = re.compile(
    r"resnet-export|numpy|pillow|msgspec|torch(vision)?|onnx|onnxruntime(-\w+)*|openvino|cuda-(python|bindings)"
    r"|cuda-toolkit|nvidia-cudnn(-cu\d+)?|tritonclient|tensorrt(-rtx)?(-cu\d+)?(-libs|-bindings)?"
)
"""The packages that matter, by their names on PyPI."""
OWN_LINES = re.compile(rf"^({'|'.join(OWN_PACKAGES)})/", re.M)
BOARD_PACKAGES = ("/usr/lib/python3*/dist-packages/tensorrt/__init__.py",)
"""Where JetPack's python3-libnvinfer puts TensorRT: for the system's Python alone."""


def package_facts(host: Host) -> PackageFacts:
    """The packages that matter, and who else installs packages of our names."""
    installed: dict[str, Package] = {}
    owners: dict[str, set[str]] = {}
    for one in _distributions(host):
        name = _name(one)
        if KNOWN.fullmatch(name):
            installed.setdefault(name, Package(name, one.version or "", host.name_of(Path(str(one.locate_file(""))))))
        if name != OURS:
            for package in _top_level(one):
                owners.setdefault(package, set()).add(name)
    return PackageFacts(
        tuple(installed[name] for name in sorted(installed)),
        {package: tuple(sorted(names)) for package, names in sorted(owners.items())},
        _board_tensorrt(host),
    )


def _distributions(host: Host) -> Iterator[Distribution]:
    """Each distribution once, the first in the order of imports; those whose metadata cannot be read are left out."""
    for folder in host.paths:
        try:
            yield from distributions(path=[folder])
        except (OSError, ValueError):
            continue


def _name(one: Distribution) -> str:
    """Its name as PyPI writes it (PEP 503); empty where the metadata has none."""
    try:
        return re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
    except (OSError, KeyError, ValueError, TypeError):
        return ""


def _top_level(one: Distribution) -> set[str]:
    """Which of `OWN_PACKAGES` a distribution installs, by its list of files, else by its `top_level.txt`."""
    try:
        names = set(OWN_LINES.findall(one.read_text("RECORD") or ""))  # `files` takes a second for PyTorch's
        return names | set((one.read_text("top_level.txt") or "").split()) & set(OWN_PACKAGES)
    except (OSError, ValueError):
        return set()


def _board_tensorrt(host: Host) -> str:
    """The folder of the system's TensorRT for Python, where Python does not look for packages."""
    for pattern in BOARD_PACKAGES:
        for name in host.names(pattern):
            folder = host.path(name).parent.parent
            if str(folder) not in {str(Path(path)) for path in host.paths}:
                return host.name_of(folder)
    return ""
