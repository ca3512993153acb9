"""What is to run on a GPU for a few minutes: that it starts without one's packages, keeps to its time and loses nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import script_module

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
TINY = {"step": "", "part": 1, "device": "cpu", "bundles": "", "record": "", "deadline": 0.0, "small": True}


@pytest.fixture(name="beside", autouse=True)
def beside_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts find those beside them."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(name="checks")
def checks_fixture() -> ModuleType:
    return script_module("gpu_checks")


STEPS = """
import json, subprocess, sys, time
job = json.loads(sys.argv[1])
name, found = job["step"], {}
def put(**values):
    found.update(values)
    open(job["record"], "w").write(json.dumps(found))
if name == "facts":
    put(device={"name": "a GPU"}, versions={})
elif name == "tests":
    put(tests={"passed": 1})
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    put(tests={"passed": 1}, child=child.pid)
    time.sleep(600)
elif name == "roofline":
    put(roofline={"fp16_tflops": 1.5})
    sys.exit("CUDA error: an illegal memory access was encountered")
elif name == "bundles":
    put(exports={"resnet20-fp32": "made"})
elif name == "parity":
    parity = {"max_relative_error": 0.7123, "sqnr_db": 40.0, "top1_agreement": 1.0, "ok": True}
    put(bundles={"resnet20-fp32": {f"{'pytorch' if job['part'] == 1 else 'onnxruntime'} (cuda)": {"parity": parity}}})
"""


@pytest.fixture(name="played")
def played_fixture(checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver over steps of which one hangs and one crashes; gives the exit code."""
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "_gpu_steps.py").write_text(STEPS)
    monkeypatch.setattr(checks, "SCRIPTS", tmp_path / "steps")
    monkeypatch.setattr(checks, "SECONDS_TO_STOP", 0.5)
    one = checks.PARTS[1]
    monkeypatch.setitem(checks.PARTS, 1, (checks.Step("tests", 1.0), *one[1:]))

    def play(part: int, **options: Any) -> int:
        given = {
            "bundles": None,
            "wheels": None,
            "seconds": 30.0,
            "output": None,
            "after": None,
            "device": "cuda",
            "only": (),
        }
        code: int = checks.run_part(part, {**given, **options})
        return code

    return play


def test_a_step_that_hangs_or_crashes_stops_no_other_and_loses_nothing(played: Any, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    assert played(1, output=output) == 1
    found = json.loads(output.read_text())
    outcomes = {name.removeprefix("part 1, "): step["outcome"] for name, step in found["steps"].items()}
    assert outcomes == {
        "facts": "done",
        "tests": "stopped: its time was over",
        "roofline": "failed: exit code 1: CUDA error: an illegal memory access was encountered",
        "bundles": "done",
        "parity": "done",
        "pytorch": "done",
    }
    assert found["tests"] == {"passed": 1}
    assert found["roofline"] == {"fp16_tflops": 1.5}
    assert found["exports"] == {"resnet20-fp32": "made"}
    state = Path(f"/proc/{found['child']}/stat")
    assert not state.exists() or state.read_text().split(") ")[1][0] == "Z", "what a step started is stopped with it"


def test_the_second_part_adds_to_the_first_and_the_table_reads_both(played: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    played(1, output=first)
    assert played(2, output=second, after=first) == 1, "the first part's failures are not forgotten"
    found = json.loads(second.read_text())
    assert found["schema_version"] == 1
    assert {"part 1, pytorch", "part 2, onnxruntime"} <= found["steps"].keys()
    matrix = script_module("parity_matrix")
    measured = json.loads(matrix.MEASURED.read_text())
    table = matrix.table_from_measurements(measured, found)
    assert f"GPU columns: a GPU, {found['date']}" in table
    assert table.count("7.1e-01, 100.00%") == 2


def test_one_step_is_run_again_and_its_failure_is_forgotten(played: Any, tmp_path: Path) -> None:
    before = {"roofline": {"failed": "no time"}, "exports": {"resnet18-fp32": "made"}}
    (tmp_path / "1.json").write_text(json.dumps(before))
    played(1, output=tmp_path / "2.json", after=tmp_path / "1.json", only=("roofline",))
    found = json.loads((tmp_path / "2.json").read_text())
    assert found["steps"].keys() == {"part 1, facts", "part 1, roofline"}
    assert found["roofline"] == {"fp16_tflops": 1.5}
    assert found["exports"] == before["exports"], "no bundle is needed, and none is made"


def test_each_export_has_cores_of_its_own_and_some_are_left() -> None:
    shares = script_module("_gpu_steps").core_shares
    assert shares(range(16)) == [[4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    assert shares([2, 3]) == [[2, 3]]


def test_tests_that_are_not_done_say_how_far_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, timing = script_module("_gpu_steps"), sys.modules["_gpu_timing"]
    (tmp_path / "test_slow.py").write_text(
        "import pytest, time\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_quick(): pass\n"
        "def test_that_hangs(): time.sleep(600)\n"
    )
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "GPU_TESTS", ("test_slow.py",))
    record = timing.Record(tmp_path / "record.json")
    job = timing.Job(**{**TINY, "record": str(record.path), "deadline": time.time() + 8})
    with pytest.raises(SystemExit, match="pytest was not done in"):
        steps.tests(job, record)
    found = record.found["tests"]
    assert (found["failed"][:11], found["passed"]) == ("not done in", 1)
    assert found["output"].splitlines()[-1].startswith("test_slow.py::test_that_hangs")


def test_figures_of_two_gpus_are_not_mixed(played: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1.json").write_text(json.dumps({"device": {"name": "another GPU"}}))
    assert played(2, output=tmp_path / "2.json", after=tmp_path / "1.json") == 3
    assert (
        "expected another GPU, of which --after's figures are, got a GPU; leave --after out" in capsys.readouterr().err
    )
    assert not (tmp_path / "2.json").exists()


def test_when_the_time_is_over_every_step_says_so(played: Any, tmp_path: Path) -> None:
    start = time.monotonic()
    played(1, output=tmp_path / "result.json", seconds=2.0)
    assert time.monotonic() - start < 15
    steps = json.loads((tmp_path / "result.json").read_text())["steps"]
    assert steps.keys() == {
        f"part 1, {name}" for name in ("facts", "tests", "roofline", "bundles", "parity", "pytorch")
    }


def test_the_result_is_named_by_its_day_and_gpu(
    played: Any, checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n')
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    played(2)
    (path,) = (tmp_path / "docs" / "measurements").glob("[0-9]*-a-GPU.json")
    assert capsys.readouterr().out == f"{path}\n"


def test_packages_come_out_of_wheels(checks: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
    code = "import carried, importlib.metadata; print(importlib.metadata.version('resnet-export'))"
    with checks.packages_of(tmp_path) as environment:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == importlib.metadata.version("resnet-export")


def test_a_folder_without_wheels_is_asked_for_wrongly(tmp_path: Path) -> None:
    done = _command("part1", "--wheels", tmp_path)
    assert done.returncode == 2
    assert f"expected wheels in {tmp_path}, got none" in done.stderr


def test_without_a_gpu_the_exit_code_is_three(tmp_path: Path) -> None:
    from runtimes.errors import BackendUnavailable
    from runtimes.nvidia.cuda import device

    try:
        device()
    except BackendUnavailable:
        done = _command("part1", "--output", tmp_path / "result.json")
        assert done.returncode == 3
        assert "error: expected an NVIDIA GPU, got failed: exit code 1: cudaGetDeviceCount" in done.stderr
        assert not (tmp_path / "result.json").exists()
    else:
        pytest.skip("there is a GPU")


def test_the_driver_needs_click_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'torch', 'msgspec', 'onnx', 'onnxruntime', 'onnxsim'):\n"
        "    sys.modules[name] = None\n"
        "import gpu_checks, _gpu_timing"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=True)


def test_the_files_of_tests_for_gpus_are_all_of_them() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if ("mark.gpu" in (text := path.read_text()) or "backend_fixtures" in text) and path.name != Path(__file__).name
    }
    assert marked == set(script_module("_gpu_steps").GPU_TESTS)


def test_the_tests_for_gpus_are_found_without_packages_that_a_gpu_machine_may_lack() -> None:
    code = (
        "import sys\n"
        "for name in ('tensorrt_rtx', 'tensorrt', 'openvino', 'tritonclient', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "import pytest\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    files = script_module("_gpu_steps").GPU_TESTS
    done = subprocess.run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_roof_is_that_of_operations_or_of_bytes() -> None:
    """torchvision gives 1.814 GFLOP (multiplications) for a ResNet-18 at 224 pixels, and 11,689,512 parameters."""
    roof = script_module("_gpu_torch")._roof_ms
    assert roof("resnet18", 1, 1.0, 1e9, 224) == pytest.approx(2 * 1.814, rel=0.01)
    assert roof("resnet18", 4, 1.0, 1e9, 224) == pytest.approx(8 * 1.814, rel=0.01)
    by_bytes = roof("resnet18", 1, 1e9, 1.0, 224)
    assert 2 * 11.689512 < by_bytes < 2 * 11.689512 + 20, "weights of 2 bytes, and activations"


def test_what_does_not_fit_in_the_time_is_not_begun(tmp_path: Path) -> None:
    pytorch, timing = script_module("_gpu_torch"), sys.modules["_gpu_timing"]
    record = timing.Record(tmp_path / "record.json")
    pytorch.speed(timing.Job(**{**TINY, "record": str(tmp_path / "record.json")}), record)
    measured = json.loads((tmp_path / "record.json").read_text())["pytorch"]["resnet18"]
    assert {ms for rows in measured.values() for ms in rows["ms"].values()} == {"not measured: no time was left"}


@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 2])
def test_all_steps_run_on_the_cpu_in_tiny_sizes(part: int, tmp_path: Path) -> None:
    done = _command(f"part{part}", "--device", "cpu", "--output", tmp_path / "result.json", "--seconds", 500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert set(found["exports"].values()) == {"made"}
    (backends,) = found["bundles"].values()
    (proven,) = backends.values()
    assert proven["parity"]["ok"]
    if part == 1:
        assert found["tests"]["ran"] > 20
        times = found["pytorch"]["resnet18"]["1"]["ms"]
        assert {name for name, ms in times.items() if not isinstance(ms, float)} == {
            "fp16, CUDA graph",
            "bf16, CUDA graph",
        }
        assert found["pytorch"]["resnet18"]["1"]["best_fp16"]["share_of_roof"] > 0
    else:
        assert isinstance(found["onnxruntime"]["resnet18"]["1"]["within_10_percent"], bool)


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "gpu_checks.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
