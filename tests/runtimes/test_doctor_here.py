"""What the doctor says of this machine is true; and a child that crashes, hangs or talks does not take it along."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_bundles import bundle_fixture, write_bundle  # noqa: F401  (a fixture)

from runtimes import available_backends, backend_names
from runtimes.doctor import children
from runtimes.doctor.answers import backend_facts
from runtimes.doctor.children import Child
from runtimes.doctor.facts import Facts
from runtimes.doctor.host import Unread
from runtimes.doctor.probe import examine
from runtimes.doctor.rules import findings_of
from runtimes.manifest import Manifest

BASE = ("numpy", "numpy.libs", "PIL", "pillow.libs", "click", "rich", "msgspec", "typing_extensions.py", "markdown_it")
RUN = "from exporter.cli.deploy import program; program()"


@pytest.fixture(scope="module")
def here() -> Facts:
    return examine()


def test_backends_run_that_it_says_run(here: Facts) -> None:
    assert [one.name for one in here.backends] == list(backend_names())
    assert {one.name for one in here.backends if one.runs} - {"triton"} == set(
        available_backends()
    )  # that one is elsewhere
    for name, package in (("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("pytorch", "torch")):
        one = here.backend(name)
        assert one.runs == ("cpu" in one.where)
        assert one.version == importlib.metadata.version(package)
    assert here.unread == ()


def test_a_package_that_is_not_installed_is_not_said_to_be(here: Facts) -> None:
    installed = importlib.util.find_spec("tensorrt") is not None
    assert here.backend("tensorrt").loads == installed
    assert bool(here.packages.version_of("tensorrt", "tensorrt-cu12", "tensorrt-cu13")) == installed


def test_libraries_load_that_it_says_load(here: Facts) -> None:
    looked_at = [one for one in here.libraries if one.backend == "openvino"]
    assert looked_at
    for one in looked_at:
        code = f"import ctypes; ctypes.CDLL({one.file!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (not one.missing), done.stderr
        assert not one.missing or any(lib.name in done.stderr for lib in one.missing)


def test_what_it_says_of_the_system_is_what_the_system_says(here: Facts) -> None:
    assert here.system.kernel == os.uname().release
    assert here.system.machine == os.uname().machine
    assert here.system.python == ".".join(map(str, sys.version_info[:3]))
    assert here.system.free_bytes is not None
    assert here.system.memory_bytes is not None
    assert 0 < here.system.free_bytes <= here.system.memory_bytes
    assert [one.rule for one in findings_of(here) if one.severity == "error"] == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os.abort()", "it crashed (SIGABRT)"),
        ("import sys; sys.exit('no libfoo.so.1')", "it ended with exit code 1: no libfoo.so.1"),
        ("print('hello')", "it ended with exit code 0"),
        ("import time; time.sleep(60)", "it did not load within 1 s"),
    ],
)
def test_a_child_that_does_not_answer_is_a_problem_in_words(
    monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    monkeypatch.setattr(children, "START", code)
    assert Child(["onnxruntime", ""]).answer(1).problem == problem


def test_what_a_child_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START", "import subprocess; subprocess.run(['sleep', '20'])")
    start = time.monotonic()
    assert Child(["onnxruntime", ""]).answer(1).problem == "it did not load within 1 s"
    assert time.monotonic() - start < 10


def test_what_is_waited_for_is_named_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START", "print('hello')")
    steps: list[str] = []
    facts = examine(backends=("onnxruntime", "openvino"), on_step=lambda step, done=0, total=0: steps.append(step))
    assert steps[-2:] == [f"load {name}, for at most 120 s" for name in ("onnxruntime", "openvino")]
    assert {one.reason for one in facts.backends} == {"it ended with exit code 0"}


def test_a_python_that_cannot_be_started_is_a_problem_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Child(["driver", "x"]).answer().problem.startswith("it cannot be asked, for no process can be started: ")


def test_a_child_ignores_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('mine')")
    (tmp_path / "json.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    assert examine(backends=["onnxruntime"]).backend("onnxruntime").runs == ("onnxruntime" in available_backends())


def test_a_driver_that_is_none_is_a_problem_in_words(tmp_path: Path) -> None:
    answer = Child(["driver", str(tmp_path / "libcuda.so.1")]).answer()
    assert answer.problem == ""
    assert "libcuda.so.1 does not load: " in answer.value["trouble"]


def test_a_probe_that_fails_is_a_line() -> None:
    unread = Unread()
    with unread.probe("board"):
        raise RuntimeError("odd\nand more")
    assert unread.lines == ["board: RuntimeError (odd)"]


# --- the command ---


def test_a_second_onnxruntime_is_found(deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    (info / "RECORD").write_text("onnxruntime/__init__.py,,\nexporter/thing.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = deploy("doctor", "--backend", "onnxruntime", "--json")
    found = {one["rule"]: one for one in done.json["findings"]}
    assert done.code == 0
    assert done.json["works"] is True
    assert found["DR301"]["severity"] == "warning"
    assert "onnxruntime-gpu installs a package 'exporter'" in found["DR302"]["text"]


def test_what_was_named_and_is_not_here_ends_with_3(deploy: Any) -> None:
    done = deploy("doctor", "--backend", "tensorrt", "--quiet")
    if done.code == 0:
        pytest.skip("TensorRT runs here")
    assert done.code == 3
    assert done.err.startswith("error: tensorrt cannot work here")
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_a_bundle_is_held_against_the_machine(deploy: Any, bundle: Path) -> None:
    done = deploy("doctor", bundle, "--backend", "onnxruntime")
    assert done.code == 0
    assert f"bundle {bundle}: tiny, fp32 for tensorrt, batch 2:3:4" in " ".join(done.out.split())
    told = deploy("doctor", bundle, "--backend", "onnxruntime", "--json").json
    assert told["bundle"]["build_refusals"] == {}
    assert told["bundle"]["memory_bytes"] > 1 << 30


def test_a_bundle_without_a_backends_file_is_refused(bundle: Path) -> None:
    assert backend_facts("pytorch", str(bundle)).refusal == "it runs reference.pt2, which the bundle has not"
    assert backend_facts("onnxruntime", str(bundle)).refusal == ""
    assert backend_facts("onnxruntime", "/nowhere").refusal.startswith("/nowhere is no bundle")


def test_a_bundle_that_its_export_rejected_cannot_work(deploy: Any, tmp_path: Path, manifest: Manifest) -> None:
    (one,) = manifest.parity.backends.values()
    bad = replace(one, ok=False, violations=("agreement 90 %",))
    parity = replace(manifest.parity, ok=False, backends={"onnxruntime": bad})
    bundle = write_bundle(tmp_path / "rejected", replace(manifest, parity=parity))
    done = deploy("doctor", bundle, "--backend", "onnxruntime", "--quiet")
    assert done.code == 3
    assert "DR401" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--backend", "tensorflow"], 2, "unknown backend 'tensorflow'; "),
        (["nothing"], 1, "is no bundle: there is no such folder; give the folder"),
        (["."], 1, "is no bundle: cannot read manifest.json"),
        (["a", "b"], 2, "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = deploy("doctor", *arguments)
    assert done.code == code
    assert said in done.error


def test_a_base_install_without_any_backend(tmp_path: Path) -> None:
    import numpy

    packages = Path(numpy.__file__).parent.parent
    for name in (*BASE, "mdurl", "pygments", "tomli"):
        if (packages / name).exists():
            (tmp_path / name).symlink_to(packages / name)
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": f"{root}:{tmp_path}", "PATH": os.environ["PATH"], "LANG": "C"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["backends"] if one["loads"]] == []
    assert [one["rule"] for one in told["findings"]] == ["DR311"]
    assert "Traceback" not in done.stderr


DRIVER = """
#include <stddef.h>
#include <string.h>
#ifndef CODE
#define CODE 0
#endif
int cuInit(unsigned flags) { return CODE; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_UNKNOWN"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA L4", size); return device < 10; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)&CODE_OF; return device == 11; }
int cuCtxPushCurrent_v2(void *context) { return context == NULL; }
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = (size_t)20 << 30; *total = (size_t)24 << 30; return 0; }
"""


def driver(folder: Path, code: int) -> Path:
    """A stand-in for NVIDIA's driver's library, with two GPUs, the second without room for a context."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, built = folder / "driver.c", folder / f"libcuda-{code}.so.1"
    source.write_text(DRIVER.replace("int cuInit", "static int CODE_OF;\nint cuInit"))
    subprocess.run([compiler, "-shared", "-fPIC", f"-DCODE={code}", "-o", built, source], check=True)
    return built


def test_gpus_are_those_that_the_driver_names(tmp_path: Path) -> None:
    told = Child(["driver", str(driver(tmp_path, 0))]).answer().value
    assert told["cuda"] == "12.4"
    assert [(one["name"], one["target"], one["memory_bytes"] >> 30) for one in told["gpus"]] == [
        ("NVIDIA L4", "sm89", 24)
    ] * 2
    assert [one["free_bytes"] for one in told["gpus"]] == [20 << 30, None]


def test_a_driver_that_does_not_start_is_named(tmp_path: Path) -> None:
    told = Child(["driver", str(driver(tmp_path, 999))]).answer().value
    assert told["trouble"] == "cuInit: CUDA_ERROR_UNKNOWN (999)"
    assert told["gpus"] == []
