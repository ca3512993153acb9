"""What the doctor says of other machines, by trees of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine_trees import desktop, half_mounted, jetpack_5, jetpack_6, jetpack_7, library, write, wsl

from runtimes.doctor.facts import Facts, Missing
from runtimes.doctor.host import Host
from runtimes.doctor.page import page
from runtimes.doctor.probe import examine
from runtimes.doctor.rules import findings_of


def seen(facts: Facts) -> dict[str, str]:
    """The rules that found something, each with its remedy."""
    return {one.rule: one.remedy for one in findings_of(facts)}


def text(facts: Facts) -> str:
    return "\n".join(line.text for line in page(facts, findings_of(facts), 96))


def test_jetpack_5_is_too_old(tmp_path: Path) -> None:
    facts = examine(jetpack_5(tmp_path))
    assert facts.board is not None
    assert (facts.board.family, facts.board.target, facts.board.l4t) == ("Xavier NX", "sm72", "35.4.1")
    found = seen(facts)
    assert set(found) == {"DR201"}
    assert "JetPack 5 is the last for Xavier NX" in found["DR201"]
    assert "jetpack    5.1.2, L4T 35.4.1: brings TensorRT 8.5.2, CUDA 11.4" in text(facts)
    assert facts.unread == ()


def test_jetpack_6_is_well(tmp_path: Path) -> None:
    facts = examine(jetpack_6(tmp_path))
    assert findings_of(facts) == ()
    assert facts.nvidia.libcuda == "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1"
    assert (facts.nvidia.toolkit, facts.nvidia.libcuda_version) == ("12.6.11", "")
    assert facts.packages.version_of("tensorrt") == "10.3.0"
    assert [one.part for one in facts.libraries] == ["TensorRT's bindings"]
    assert facts.system.cores == 6
    assert "INT8 on dot product (how fast is not measured)" in text(facts)
    assert text(facts).endswith("nothing is wrong")


def test_an_environment_that_does_not_see_jetpacks_packages(tmp_path: Path) -> None:
    found = seen(examine(jetpack_6(tmp_path, sees_system=False)))
    assert set(found) == {"DR202"}
    assert "python3 -m venv --system-site-packages" in found["DR202"]


def test_jetpack_7_is_well(tmp_path: Path) -> None:
    facts = examine(jetpack_7(tmp_path))
    assert findings_of(facts) == ()
    assert facts.board is not None
    assert facts.board.target == "sm110"
    assert facts.nvidia.module == "580.00"
    assert "dla        none on this board" in text(facts)


def test_a_desktop_whose_packages_fight_and_whose_provider_lacks_libraries(tmp_path: Path) -> None:
    facts = examine(desktop(tmp_path))
    (one,) = facts.libraries
    assert one.part == "onnxruntime's cuda provider"
    assert one.missing == (
        Missing("libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so.12"),
        Missing("libcudnn.so.9"),
    )
    assert (facts.nvidia.module, facts.nvidia.libcuda_version, facts.nvidia.in_slots) == ("550.54.14", "550.54.14", 1)
    found = seen(facts)
    assert set(found) == {"DR301", "DR303"}
    assert found["DR303"] == (
        "echo /usr/local/cuda/lib64 | sudo tee /etc/ld.so.conf.d/cuda.conf && sudo ldconfig\n"
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    assert found["DR301"].endswith("pip install onnxruntime-gpu")
    # the same libraries, where the loader looks: by the environment, and as NVIDIA's packages
    write(tmp_path, {"venv/lib/python3/site-packages/nvidia/cudnn/lib/libcudnn.so.9": library(["libcudart.so.12"])})
    host = desktop_with(tmp_path, {"LD_LIBRARY_PATH": "/nowhere:/usr/local/cuda/lib64"})
    assert examine(host).libraries[0].missing == ()
    assert examine(host).nvidia.cudnn == "9"


def desktop_with(root: Path, environment: dict[str, str]) -> Host:
    return Host(root, "x86_64", "3.11.7", (f"{root}/venv/lib/python3/site-packages",), environment, is_here=False)


def test_a_container_with_half_of_the_driver(tmp_path: Path) -> None:
    facts = examine(half_mounted(tmp_path))
    found = seen(facts)
    assert set(found) == {"DR101"}
    assert "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility" in found["DR101"]
    assert (facts.system.memory_bytes, facts.system.free_bytes) == (2 << 30, 1 << 30)  # its control group's
    assert "in a container (Docker)" in text(facts)


def test_a_container_with_the_other_half(tmp_path: Path) -> None:
    host = half_mounted(tmp_path)
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / "dev" / name).unlink()
    write(tmp_path, {"usr/lib/x86_64-linux-gnu/libcuda.so.1": library()})
    found = seen(examine(host))
    assert set(found) == {"DR102"}
    assert found["DR102"].startswith("start the container with: docker run --gpus all")


def test_two_versions_of_a_driver(tmp_path: Path) -> None:
    host = desktop(tmp_path)
    write(tmp_path, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.1.2  Thu\n"})
    assert "reboot" in seen(examine(host))["DR103"]


def test_wsl_with_and_without_a_driver_in_windows(tmp_path: Path) -> None:
    facts = examine(wsl(tmp_path / "with"))
    assert findings_of(facts) == ()
    assert facts.system.wsl
    assert facts.nvidia.libcuda == "/usr/lib/wsl/lib/libcuda.so.1"
    found = seen(examine(wsl(tmp_path / "without", driver=False)))
    assert set(found) == {"DR106"}
    host = wsl(tmp_path / "mixed")
    write(tmp_path / "mixed", {"usr/lib/x86_64-linux-gnu/libcuda.so.1": library(), "etc/ld.so.conf": ""})
    assert set(seen(examine(host))) == {"DR107"}


def test_an_empty_root_is_no_reason_to_fail(tmp_path: Path) -> None:
    facts = examine(Host(tmp_path / "nothing", "riscv64", "3.13.0", (), {}, is_here=False))
    assert (facts.board, facts.unread, facts.system.memory_bytes) == (None, (), None)
    assert "system     riscv64" in text(facts)
    assert findings_of(facts) == ()


def test_odd_files_are_no_reason_to_fail(tmp_path: Path) -> None:
    odd: dict[str, str | bytes] = {
        "etc/nv_tegra_release": b"\xff\xfe# R36 (release), REVISION: x",
        "etc/os-release": b"\x00\xff",
        "etc/ld.so.conf": "include /etc/ld.so.conf\ninclude\n",
        "etc/ld.so.cache": b"glibc-ld.so.cache1.1\xff\xff\xff\xff",
        "proc/meminfo": "MemTotal: many kB\n",
        "sys/fs/cgroup/memory.max": "no number",
        "proc/driver/nvidia/version": "\n",
        "usr/local/cuda/version.json": "[",
        "venv/lib/python3/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so": b"\x7fELF\x02\x01 short",
        "venv/lib/python3/site-packages/torch-1.dist-info/METADATA": "nothing",
    }
    facts = examine(desktop_with(write(tmp_path, odd), {}))
    assert facts.unread == ()
    assert [(one.rule, one.backend) for one in findings_of(facts)] == [("DR303", "onnxruntime")]
    assert "cannot be read: expected a 64-bit ELF library" in text(facts).replace("\n" + " " * 16, " ")


def test_no_line_is_wider_than_asked(tmp_path: Path) -> None:
    facts = examine(jetpack_5(tmp_path))
    for width, most in ((20, 60), (80, 80), (500, 100)):
        lines = page(facts, findings_of(facts), width)
        assert max(len(line.text) for line in lines if line.style != "remedy") <= most
        assert max(len(line.text) for line in lines) <= 100


@pytest.mark.parametrize(
    ("model", "version", "said"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", "10.3.0", "fp16 with TensorRT 10.3.0: resnet-deploy build"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "10.16.2", "not with TensorRT 10.16.2; with TensorRT up to 10.7"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "11.4.1", "fp16, int8 with TensorRT 11.4.1"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "10.3.0", "none on this board"),
        ("NVIDIA Jetson AGX Xavier", "8.5.2", "not known"),
    ],
)
def test_what_is_known_of_dla(tmp_path: Path, model: str, version: str, said: str) -> None:
    host = jetpack_6(tmp_path)
    site = tmp_path / "usr/lib/python3.10/dist-packages"
    (site / "tensorrt-10.3.0.dist-info" / "METADATA").write_text(f"Name: tensorrt\nVersion: {version}\n")
    write(tmp_path, {"proc/device-tree/model": f"{model}\0"})
    assert said in examine(host).dla
