"""Every rule of the doctor, one by one: what makes it speak, and that it is silent on a machine that is well."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.board.jetpack import Board, jetpack_of
from runtimes.board.memory import GIB
from runtimes.doctor.facts import (
    BackendFacts,
    BundleFacts,
    Facts,
    GpuFacts,
    LibraryFacts,
    Missing,
    NvidiaFacts,
    Package,
    PackageFacts,
    ProviderFacts,
    SystemFacts,
)
from runtimes.doctor.page import page
from runtimes.doctor.rule import Finding
from runtimes.doctor.rules import RULES, findings_of, what_cannot_work
from runtimes.processor import Processor

SYSTEM = SystemFacts(
    "Ubuntu 24.04.1 LTS", "6.8.0", "x86_64", "glibc 2.39", "3.12.3", "", False,
    Processor("AMD EPYC", ("avx2", "avx512_vnni")), 8, 64 * GIB, 32 * GIB,
)  # fmt: skip
LOVELACE = GpuFacts("NVIDIA L4", "sm89", 22 * GIB, 21 * GIB)
NVIDIA = NvidiaFacts("580.1.2", ("/dev/nvidia0",), "/usr/lib/libcuda.so.1", "580.1.2", "13.0", (LOVELACE,), in_slots=1)
PACKAGES = PackageFacts(
    tuple(
        Package(name, version, "/venv")
        for name, version in (("cuda-bindings", "13.5.0"), ("onnxruntime", "1.32.0"), ("tensorrt-cu13", "11.4.0"))
    )
)
ONNXRUNTIME = BackendFacts("onnxruntime", "1.32.0", True, True, "", (ProviderFacts("cpu", True),))
TENSORRT = BackendFacts("tensorrt", "11.4.0", True, True)
RTX = BackendFacts("tensorrt-rtx", "1.7.1", True, True)
BUNDLE = BundleFacts("resnet50-fp16", "resnet50", "fp16", "tensorrt", "1:8:32", "", 100 << 20, GIB, 50 * GIB, True)
WELL = Facts(SYSTEM, None, NVIDIA, PACKAGES, (), (ONNXRUNTIME, TENSORRT), BUNDLE)
MODEL = "NVIDIA Jetson Orin Nano Developer Kit"
BOARD = Board(MODEL, "36.4.3", jetpack_of("36.4.3"))
ON_BOARD = Facts(
    replace(SYSTEM, machine="aarch64", python="3.10.12"),
    BOARD,
    replace(NVIDIA, module="", libcuda_version="", cuda="12.6", gpus=(GpuFacts("Orin", "sm87", 7 * GIB),), in_slots=0),
    PackageFacts(
        (
            Package("cuda-python", "12.8.0", "/venv"),
            Package("tensorrt", "10.3.0", "/usr/lib/python3.10/dist-packages"),
        )
    ),
    (),
    (replace(TENSORRT, version="10.3.0"),),
)
NO_GPU = replace(WELL, nvidia=NvidiaFacts(), backends=(ONNXRUNTIME,))


def nvidia(facts: Facts, **changes: object) -> Facts:
    return replace(facts, nvidia=replace(facts.nvidia, **changes))  # type: ignore[arg-type]  # each case names a field


def system(facts: Facts, **changes: object) -> Facts:
    return replace(facts, system=replace(facts.system, **changes))  # type: ignore[arg-type]  # likewise


def bundle(facts: Facts, **changes: object) -> Facts:
    return replace(facts, bundle=replace(BUNDLE, **changes))  # type: ignore[arg-type]  # likewise


def packages(facts: Facts, *more: Package) -> Facts:
    return replace(facts, packages=replace(facts.packages, installed=(*facts.packages.installed, *more)))


def board(l4t: str, model: str = MODEL) -> Facts:
    return replace(ON_BOARD, board=Board(model, l4t, jetpack_of(l4t)))


def cuda_provider(*missing: Missing) -> LibraryFacts:
    return LibraryFacts("/x.so", "onnxruntime's cuda provider", "onnxruntime", False, missing)


UNSEEN = replace(ON_BOARD.packages, installed=(Package("cuda-python", "12.8.0", "/venv"),))
OLD = replace(ON_BOARD, packages=replace(UNSEEN, board_tensorrt="/usr/lib/python3.10/dist-packages"))

CASES: list[tuple[str, str, Facts, str, str]] = [
    # the rule, how bad, the facts, a part of the text, a part of the remedy
    ("DR101", "error", nvidia(WELL, libcuda=""), "(/dev/nvidia0), the driver's library", "apt-get install"),
    ("DR101", "error", nvidia(ON_BOARD, libcuda=""), "libcuda.so.1 is not", "nvidia-l4t-cuda"),
    ("DR101", "error", system(nvidia(WELL, libcuda=""), container="Docker"), "", "docker run --gpus all"),
    ("DR102", "error", nvidia(WELL, nodes=()), "device files in /dev are not", "sudo modprobe nvidia"),
    ("DR102", "error", system(nvidia(ON_BOARD, nodes=()), container="Docker"), "", "--runtime nvidia"),
    ("DR102", "error", system(nvidia(WELL, nodes=(), libcuda="/usr/lib/wsl/lib/libcuda.so.1"), wsl=True), "", "wsl --update"),
    ("DR103", "error", nvidia(WELL, module="570.1"), "kernel is 570.1, its library 580.1.2", "sudo reboot"),
    ("DR104", "error", nvidia(WELL, trouble="cuInit: CUDA_ERROR_UNKNOWN (999)"), "999", "nvidia-smi"),
    ("DR104", "error", nvidia(WELL, trouble="operation not permitted: PERMISSION"), "", "usermod"),
    ("DR105", "warning", replace(NO_GPU, nvidia=NvidiaFacts(in_slots=1)), "on the PCI bus", "nvidia-driver"),
    ("DR106", "warning", system(NO_GPU, wsl=True), "WSL", "wsl --update"),
    ("DR107", "warning", system(WELL, wsl=True), "/usr/lib/libcuda.so.1 of a Linux driver", "purge"),
    ("DR108", "error", nvidia(WELL, cuda="12.4"), "CUDA up to 12.4", "580 or newer"),
    ("DR109", "warning", nvidia(WELL, gpus=(GpuFacts("Tesla V100", "sm70", GIB),)), "sm70", "--backend onnxruntime"),
    ("DR110", "warning", replace(nvidia(WELL, gpus=(GpuFacts("H100", "sm90", GIB),)), backends=(RTX, TENSORRT)), "sm90", "tensorrt]"),
    ("DR111", "warning", replace(WELL, backends=(ONNXRUNTIME,)), "NVIDIA L4", "pip install 'resnet-export[tensorrt]'"),
    ("DR201", "error", board("35.4.1"), "JetPack 5.1.2, TensorRT 8.5.2", "flash JetPack 6"),
    ("DR201", "error", board("32.7.1", "NVIDIA Jetson Nano Developer Kit"), "L4T 32.7.1 is too old", "last for Nano"),
    ("DR202", "error", OLD, "/usr/lib/python3.10/dist-packages", "--system-site-packages"),
    ("DR203", "error", system(ON_BOARD, python="3.11.7"), "Python 3.10 alone", "/usr/bin/python3 -m venv"),
    ("DR204", "warning", replace(ON_BOARD, packages=UNSEEN), "not installed on this board", "python3-libnvinfer"),
    ("DR205", "note", board("36.4.7"), "the nearest known is 36.4.4, JetPack 6.2.1", ""),
    ("DR206", "error", packages(ON_BOARD, Package("tensorrt-cu12", "10.9", "/venv")), "for servers", "pip uninstall"),
    ("DR301", "warning", packages(WELL, Package("onnxruntime-gpu", "1.31.1", "/venv")), "both installed", "onnxruntime-gpu"),
    ("DR302", "error", replace(WELL, packages=replace(PACKAGES, owners={"exporter": ("prometheus",)})), "prometheus installs", "pip uninstall -y prometheus"),
    ("DR303", "warning", replace(WELL, libraries=(cuda_provider(Missing("libcudnn.so.9")),)), "libcudnn.so.9 is not found", "onnxruntime-gpu[cuda,cudnn]"),
    ("DR303", "warning", replace(WELL, libraries=(cuda_provider(Missing("libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so.12")),)), "(in /usr/local/cuda/lib64)", "sudo ldconfig"),
    ("DR303", "note", replace(NO_GPU, libraries=(cuda_provider(Missing("libcuda.so.1")),)), "needs NVIDIA's driver", ""),
    ("DR303", "error", replace(WELL, libraries=(LibraryFacts("/x", "TensorRT", "tensorrt", True, (Missing("libz.so.1"),)),)), "TensorRT does not load", "--force-reinstall"),
    ("DR304", "error", replace(WELL, backends=(ONNXRUNTIME, replace(TENSORRT, loads=False, runs=False, reason="ImportError: bad")),), "does not load: ImportError: bad", "install it again"),
    ("DR304", "error", replace(NO_GPU, asked=("tensorrt",), backends=(BackendFacts("tensorrt", reason="it did not load within 120 s"),)), "tensorrt does not load: it did not load within 120 s", "import tensorrt"),
    ("DR304", "error", replace(NO_GPU, backends=(ONNXRUNTIME, BackendFacts("tensorrt", reason="it crashed (SIGABRT)"),)), "tensorrt does not load: it crashed (SIGABRT)", "import tensorrt"),
    ("DR305", "error", replace(NO_GPU, asked=("openvino",), backends=(BackendFacts("openvino", reason="backend needs the package 'openvino', which"),)), "'openvino' is missing", "[openvino]"),
    ("DR306", "error", replace(WELL, asked=("tensorrt",), backends=(replace(TENSORRT, runs=False, reason="no device; wait"),)), "no device", "wait"),
    ("DR306", "note", replace(NO_GPU, backends=(ONNXRUNTIME, replace(RTX, runs=False, reason="x"))), "no NVIDIA driver, and no GPU", "--backend"),
    ("DR307", "warning", replace(WELL, backends=(replace(ONNXRUNTIME, providers=(ProviderFacts("cpu", True), ProviderFacts("cuda", False, "bad; mend it"))), TENSORRT)), "does not run on cuda: bad", "mend it"),
    ("DR308", "error", packages(replace(WELL, packages=PackageFacts()), Package("cuda-python", "12", ""), Package("tensorrt", "8.6.1", "")), "8.6.1 is too old", "--upgrade"),
    ("DR309", "warning", packages(WELL, Package("tensorrt-cu12", "10.9.0", "")), "tensorrt-cu13 and tensorrt-cu12", "pip uninstall"),
    ("DR310", "error", replace(ON_BOARD, packages=replace(UNSEEN, installed=(Package("tensorrt", "10.3.0", "/usr/lib/python3.10/dist-packages"),))), "without cuda-python", "'cuda-python>=12.8,<13'"),
    ("DR311", "error", replace(NO_GPU, bundle=None, backends=(BackendFacts("onnxruntime"),)), "bundles can only be inspected", "pip install 'resnet-export[openvino]'"),
    ("DR311", "error", replace(ON_BOARD, bundle=None, backends=(BackendFacts("onnxruntime"),)), "no backend runs here", "sudo apt-get install python3-libnvinfer && python3 -m venv"),
    ("DR401", "error", bundle(WELL, rejection="onnxruntime: 90 % agree"), "90 % agree", "report.html"),
    ("DR402", "note", bundle(WELL, build_refusals={"tensorrt": "it is for cpu; export it again"}), "it is for cpu", "export it again"),
    ("DR403", "note", replace(WELL, backends=(replace(ONNXRUNTIME, refusal="no BF16; use another"), TENSORRT)), "no BF16", "use another"),
    ("DR404", "error", replace(ON_BOARD, bundle=replace(BUNDLE, precision="bf16")), "10.3.0 on Orin takes no bf16", "--fp16"),
    ("DR405", "warning", system(WELL, free_bytes=GIB // 2), "1.0 GiB of memory, and 512 MiB are free", "--batch 1:1:4"),
    ("DR406", "error", bundle(WELL, free_disk_bytes=10 << 20), "up to 100 MiB", "make room"),
    ("DR407", "error", bundle(WELL, writable=False), "cannot be written", "cp -r"),
    ("DR407", "error", bundle(WELL, writable=False, path="it's $HOME"), "cannot be written", "'it'\"'\"'s $HOME' ~"),
    ("DR407", "error", bundle(WELL, key_problem="no home; set it"), "has no place: no home", "RESNET_EXPORT_ENGINE_KEY"),
    ("DR408", "note", bundle(NO_GPU, precision="int8"), "computes it in floating point", "--target cpu"),
    ("DR410", "note", replace(WELL, backends=(ONNXRUNTIME, replace(TENSORRT, unbuilt="none; x"))), "no engine that tensorrt loads", "resnet-deploy build resnet50-fp16 --backend tensorrt"),
    ("DR303", "note", replace(WELL, libraries=(cuda_provider(Missing("libnvinfer.so.10")),)), "libnvinfer.so.10 is not found", "or leave"),
    ("DR409", "error", replace(NO_GPU, backends=(replace(ONNXRUNTIME, refusal="no; x"),)), "no backend that is here", ""),
]  # fmt: skip


def test_a_machine_that_is_well_has_no_findings() -> None:
    assert findings_of(WELL) == ()
    assert findings_of(ON_BOARD) == ()
    assert findings_of(NO_GPU) == ()


@pytest.mark.parametrize(("rule", "severity", "facts", "text", "remedy"), CASES, ids=[case[0] for case in CASES])
def test_a_rule_speaks(rule: str, severity: str, facts: Facts, text: str, remedy: str) -> None:
    found = [one for one in findings_of(facts) if one.rule == rule]
    assert found, findings_of(facts)
    assert found[0].severity == severity
    assert text in found[0].text
    assert remedy in found[0].remedy


def test_what_crashes_is_not_said_to_be_missing() -> None:
    crashed = BackendFacts("tensorrt", reason="it crashed (SIGABRT)")
    facts = replace(NO_GPU, asked=("tensorrt",), backends=(crashed, BackendFacts("openvino", reason="no package")))
    rules = {one.rule for one in findings_of(facts)}
    assert ("DR304" in rules, "DR305" in rules) == (True, False)
    found = page(facts, findings_of(facts), 96)
    assert "docs/" not in "".join(line.text for line in found), "the page stands by itself"
    lines = [line.text.split() for line in found]
    assert ["tensorrt", "-", "does", "not", "load"] in lines
    assert ["openvino", "-", "not", "installed"] in lines


def test_every_rule_has_a_case_and_an_id_of_its_own() -> None:
    ids = [rule.id for rule in RULES]
    assert ids == sorted(set(ids))
    assert {case[0] for case in CASES} == set(ids)


def test_what_is_wrong_comes_with_a_remedy_and_the_worst_first() -> None:
    found = [one for case in CASES for one in findings_of(case[2])]
    assert [one for one in found if one.severity != "note" and not one.remedy] == []
    order = ["error", "warning", "note"]
    for case in CASES:
        places = [order.index(one.severity) for one in findings_of(case[2])]
        assert places == sorted(places)


def test_a_rule_that_fails_is_a_note() -> None:
    broken = replace(WELL, nvidia=replace(NVIDIA, cuda="newest"))
    assert findings_of(broken) == (
        Finding(
            "DR108", "note", "", "a package for a newer CUDA than the driver's: not judged (ValueError: invalid literal "
            "for int() with base 10: 'newest')", "",
        ),
    )  # fmt: skip


def test_what_was_asked_about_alone_is_shown() -> None:
    facts = packages(WELL, Package("onnxruntime-gpu", "1.31.1", "/venv"))
    assert findings_of(replace(facts, asked=("tensorrt",))) == ()
    assert [one.rule for one in findings_of(replace(facts, asked=("onnxruntime",)))] == ["DR301"]


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (WELL, ()),
        (replace(WELL, asked=("tensorrt", "onnxruntime")), ()),
        (replace(WELL, asked=("openvino",)), ("openvino",)),
        (replace(NO_GPU, bundle=None, asked=("tensorrt",), backends=(replace(TENSORRT, runs=False),)), ("tensorrt",)),
        (replace(NO_GPU, bundle=None, backends=()), ()),  # nothing was named
        (replace(NO_GPU, backends=()), ("resnet50-fp16",)),
        (replace(NO_GPU, backends=(BackendFacts("pytorch", "2.14", True, True),)), ("resnet50-fp16",)),
        (bundle(WELL, rejection="out of budget"), ("resnet50-fp16",)),
        (bundle(replace(WELL, asked=("tensorrt",)), build_refusals={"tensorrt": "it is for cpu"}), ("tensorrt",)),
        (bundle(WELL, build_refusals={"tensorrt": "it is for cpu"}), ()),  # onnxruntime runs it
    ],
)
def test_what_cannot_work(facts: Facts, names: tuple[str, ...]) -> None:
    assert what_cannot_work(facts) == names


def test_the_documentation_lists_every_rule() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()
    told = re.findall(r"^\| (DR\d+) \| (\w+) \| (.+) \|$", text, re.M)
    assert told == [(rule.id, rule.severity, rule.title) for rule in RULES]
