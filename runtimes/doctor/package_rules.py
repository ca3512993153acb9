"""Rules on packages: conflicts, libraries that lack others, backends that do not load."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runtimes._open import remedy_for
from runtimes.board.jetpack import OLDEST_TENSORRT
from runtimes.doctor.board_rules import ENVIRONMENT
from runtimes.doctor.facts import BackendFacts, Facts, LibraryFacts, Missing
from runtimes.doctor.rule import Case, Rule, Severity

BOTH = ("onnxruntime", "onnxruntime-gpu")
DRIVERS = ("libcuda.so", "libnvidia-")
"""Begin the names of the driver's own libraries, which no package brings."""
APT = {"libOpenCL.so.1": "ocl-icd-libopencl1", "libze_loader.so.1": "libze1", "libgomp.so.1": "libgomp1"}
OPTIONAL = ("openvino", "pytorch")
"""Backends whose packages hold parts for devices that most machines do not have."""
MODULES = {"pytorch": "torch", "tensorrt-rtx": "tensorrt_rtx", "triton": "tritonclient.grpc"}
TENSORRT = ("libnvinfer", "libnvonnxparser")


def _both_runtimes(facts: Facts) -> Iterator[Case]:
    if all(facts.packages.version_of(name) for name in BOTH):
        keep = BOTH[1] if facts.nvidia.libcuda else BOTH[0]
        yield Case(
            "onnxruntime and onnxruntime-gpu are both installed, and write over each other's files",
            f"pip uninstall -y {' '.join(BOTH)} && pip install {keep}",
            "onnxruntime",
        )


def _foreign_packages(facts: Facts) -> Iterator[Case]:
    for package, owners in facts.packages.owners.items():
        for owner in owners:
            yield Case(
                f"{owner} installs a package '{package}', too: which of the two is imported is chance",
                f"pip uninstall -y {owner} && pip install --force-reinstall --no-deps resnet-export",
            )


def _missing_libraries(facts: Facts) -> Iterator[Case]:
    for one in facts.libraries:
        if one.problem:
            yield Case(f"{one.part} cannot be read: {one.problem}", _reinstall(one), one.backend)
        missing = [lib for lib in one.missing if facts.nvidia.is_there or not lib.name.startswith(DRIVERS)]
        if not missing and one.missing:  # a driver, where there is no GPU either
            yield Case(f"{one.part} needs NVIDIA's driver: {one.missing[0].name} is not here", "", one.backend, "note")
        if not missing:
            continue
        if not one.needed and one.backend in OPTIONAL and one.backend not in facts.asked:
            continue
        names = [f"{lib.name}{f' (in {_folder(lib)})' if lib.elsewhere else ''}" for lib in missing]
        verb = "is" if len(names) == 1 else "are"
        is_note = one.backend in OPTIONAL or any(lib.name.startswith(TENSORRT) for lib in missing)
        severity: Severity = "error" if one.needed else "note" if is_note else "warning"
        yield Case(
            f"{one.part} does not load: {', '.join(names)} {verb} not found",
            "\n".join(dict.fromkeys(_remedy(one, lib) for lib in missing)),
            one.backend,
            severity,
        )


def _folder(missing: Missing) -> str:
    return missing.elsewhere.rpartition("/")[0]


def _remedy(library: LibraryFacts, missing: Missing) -> str:
    """What brings a library that is missing."""
    if missing.elsewhere:
        return f"echo {_folder(missing)} | sudo tee /etc/ld.so.conf.d/cuda.conf && sudo ldconfig"
    if missing.name in APT:
        return f"sudo apt-get install {APT[missing.name]}"
    if missing.name.startswith(DRIVERS):
        return "install NVIDIA's driver; a container is started with: docker run --gpus all ..."
    if missing.name.startswith(TENSORRT):
        return "install the TensorRT that it is made for, or leave that provider alone"
    if library.backend == "onnxruntime":
        return "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return _reinstall(library)


def _reinstall(library: LibraryFacts) -> str:
    return "install it again: " + remedy_for(library.backend).replace("pip install", "pip install --force-reinstall")


def _is_explained(facts: Facts, backend: str) -> bool:
    return any(one.backend == backend and one.needed and (one.missing or one.problem) for one in facts.libraries)


def _does_not_load(facts: Facts) -> Iterator[Case]:
    for one in facts.backends:
        if (one.version or one.broke) and not one.loads and not _is_explained(facts, one.name):
            text, remedy = _split(one)
            yield Case(f"{' '.join(filter(None, (one.name, one.version)))} does not load: {text}", remedy, one.name)


def _split(backend: BackendFacts) -> tuple[str, str]:
    """A reason as `what; remedy`, in which our errors are written."""
    if backend.reason.startswith("it "):  # a child that did not answer
        module = MODULES.get(backend.name, backend.name)
        return backend.reason, f"see where: python -X faulthandler -c 'import {module}'"
    text, mark, remedy = backend.reason.partition("; ")
    return text, remedy if mark else f"install it again: {remedy_for(backend.name)}"


def _not_installed(facts: Facts) -> Iterator[Case]:
    for name in facts.asked:
        one = facts.backend(name)
        if not one.version and not one.loads and not one.broke:
            needed = re.search(r"needs the package '([\w.-]+)'", one.reason)
            said = f"the package '{needed[1]}' is missing" if needed else _split(one)[0]
            yield Case(f"{name} is not installed: {said}", remedy_for(name), name)


def _does_not_run(facts: Facts) -> Iterator[Case]:
    for one in facts.backends:
        if not one.loads or one.runs:
            continue
        severity: Severity = "error" if one.name in facts.asked else "note"
        if one.name.startswith("tensorrt") and not facts.nvidia.is_there:
            can = "builds engines for other machines, and " if one.name == "tensorrt-rtx" else ""
            yield Case(
                f"{one.name} {can}runs none here: there is no NVIDIA driver, and no GPU",
                "run on a machine that has one, or with --backend onnxruntime",
                one.name,
                severity,
            )
        else:
            text, remedy = _split(one)
            yield Case(f"{one.name} does not run here: {text}", remedy, one.name)


def _provider_does_not_work(facts: Facts) -> Iterator[Case]:
    for one in facts.backends:
        for provider in one.providers:
            named = any(
                library.backend == one.name and provider.name.split("-")[0] in library.part and library.missing
                for library in facts.libraries
            )
            if one.runs and not provider.works and not named:
                text, _, remedy = provider.reason.partition("; ")
                yield Case(f"{one.name} does not run on {provider.name}: {text}", remedy, one.name)


def _old_tensorrt(facts: Facts) -> Iterator[Case]:
    version = facts.packages.version_of("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and numbers < OLDEST_TENSORRT and (facts.board is None or facts.board.jetpack is None):
        yield Case(
            f"TensorRT {version} is too old: 10.3 or newer is needed", "pip install --upgrade tensorrt", "tensorrt"
        )


def _two_tensorrts(facts: Facts) -> Iterator[Case]:
    names = [one.name for one in facts.packages.installed if re.fullmatch(r"tensorrt-cu\d+", one.name)]
    if len(names) > 1:
        yield Case(
            f"{' and '.join(names)} are both installed, and write over each other's files",
            f"keep one: pip uninstall -y {names[0]} {names[0]}-libs {names[0]}-bindings",
            "tensorrt",
        )


def _no_bindings(facts: Facts) -> Iterator[Case]:
    engines = facts.packages.version_of("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13")
    if engines and not facts.packages.version_of("cuda-bindings", "cuda-python"):
        newest = facts.board.jetpack.cuda if facts.board and facts.board.jetpack else facts.nvidia.cuda or "13"
        wanted = "'cuda-python>=13'" if newest.startswith("13") else "'cuda-python>=12.8,<13'"
        yield Case("TensorRT is installed without cuda-python, which runs its engines", f"pip install {wanted}")


def _nothing_runs(facts: Facts) -> Iterator[Case]:
    if facts.backends and not facts.asked and not any(one.runs for one in facts.backends):
        yield Case(
            "no backend runs here, so bundles can only be inspected",
            f"sudo apt-get install python3-libnvinfer && {ENVIRONMENT}"
            if facts.board is not None
            else "pip install 'resnet-export[openvino]'",
        )


RULES = (
    Rule("DR301", "warning", "onnxruntime and onnxruntime-gpu at once, which share files", _both_runtimes),
    Rule("DR302", "error", "another package that installs modules of our names", _foreign_packages),
    Rule("DR303", "warning", "a library that needs others, which are not found", _missing_libraries),
    Rule("DR304", "error", "a backend that is here and does not load: it crashes, hangs or fails", _does_not_load),
    Rule("DR305", "error", "a backend that was named and is not installed", _not_installed),
    Rule("DR306", "error", "a backend that loads, and cannot run a model here", _does_not_run),
    Rule("DR307", "warning", "a provider that failed to run a model of one ReLU", _provider_does_not_work),
    Rule("DR308", "error", "a TensorRT that is older than 10.3", _old_tensorrt),
    Rule("DR309", "warning", "TensorRT for two CUDA generations at once, which share files", _two_tensorrts),
    Rule("DR310", "error", "TensorRT without cuda-python, which runs its engines", _no_bindings),
    Rule("DR311", "error", "no backend that runs here", _nothing_runs),
)
