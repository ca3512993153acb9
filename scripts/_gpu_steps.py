"""The steps of `scripts/gpu_checks.py`, each in a process of its own: what breaks a GPU's context or hangs stops one step alone.

python scripts/_gpu_steps.py JOB        # JOB as `gpu_checks` writes it, in JSON
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from _gpu_timing import Job, Record, attempt, median_ms

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *(
        "torch",
        "torchvision",
        "onnxruntime-gpu",
        "onnxruntime",
        "tensorrt",
        "tensorrt-rtx-cu13",
        "cuda-bindings",
        "numpy",
    ),
    *("onnx", "onnxscript", "onnxsim", "msgspec", "nvidia-cudnn-cu13", "nvidia-cublas"),
)
GPU_TESTS = (
    *("tests/runtimes/test_cuda.py", "tests/runtimes/test_dlpack_streams.py", "tests/runtimes/test_engine_on_a_gpu.py"),
    *("tests/runtimes/test_prepared.py", "tests/runtimes/test_runtime_contract.py"),
    *("tests/runtimes/test_runtime_opening.py", "tests/runtimes/test_stream.py"),
    *("tests/runtimes/test_forked_runtimes.py", "tests/runtimes/test_shared_runtimes.py"),
)
"""The files of tests that are marked `gpu`; the others need not be read, and packages that they need not be there."""
MODELS = ("resnet18", "resnet50", "resnet101", "resnext50_32x4d")
BUNDLES = {
    1: (("resnet20", "fp32"), *((model, "fp32") for model in MODELS)),
    2: (
        *(("resnet20", precision) for precision in ("fp32", "fp16", "int8")),
        ("resnet50", "int8"),  # the slowest to make, early
        *((model, precision) for precision in ("fp16", "fp32") for model in MODELS),
        ("resnet50", "bf16"),
    ),
}
SMALL_BUNDLES = {1: (("resnet20", "fp32"),), 2: (("resnet20", "fp16"),)}
RUNS: dict[int, tuple[tuple[str, str | None], ...]] = {
    1: (("pytorch", "cuda"),),
    2: (
        *(("onnxruntime", "cuda"), ("onnxruntime", "cuda-nhwc"), ("onnxruntime", "cuda-graph")),
        *(("onnxruntime", "tensorrt"), ("tensorrt", None), ("tensorrt-rtx", None)),
    ),
}
"""What each part proves bundles on; a backend that is not here says so in its place."""
SMALL_RUNS: dict[int, tuple[tuple[str, str | None], ...]] = {1: (("pytorch", "cpu"),), 2: (("onnxruntime", "cpu"),)}
CALIBRATION_IMAGES = 64
CORES_EACH, CORES_LEFT = 3, 4
SECONDS_TO_PROVE = 3.0
SECONDS_TO_HANG = 40
"""After which a test that is not done shows where its threads are."""
MOST_OUTPUT = 20_000
"""Characters of pytest's output that are kept where a test failed."""


def facts(job: Job, record: Record) -> None:
    """The device, and what is installed.

    Raises:
        BackendUnavailable: there is no such device.
    """
    record.put(_versions(), "versions")
    record.put(platform.platform(), "platform")
    record.put(os.cpu_count(), "cores")
    record.put(_device(job), "device")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device(job: Job) -> dict[str, Any]:
    if job.device == "cpu":
        return {"name": "the CPU"}
    from runtimes.nvidia.cuda import device

    return asdict(device())


def tests(job: Job, record: Record) -> None:
    """The tests marked `gpu`: how many passed, and what became of the others."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "gpu.xml"
        # the versions here are not those of CI: a warning of a package is no failure of ours
        options = ["-m", "gpu and not slow", "-v", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        options += ["--durations=15", "-o", f"faulthandler_timeout={SECONDS_TO_HANG}"]
        command = [sys.executable, "-m", "pytest", *options, *GPU_TESTS]
        left = max(job.seconds_left - 1, 1)
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            passed = sum(" PASSED " in line for line in said.splitlines())
            record.put({"failed": f"not done in {left:.0f} s", "passed": passed, "output": _told(said)}, "tests")
            sys.exit(f"pytest was not done in {left:.0f} s")
        if done.returncode not in (0, 1) or not report.exists():  # 1: a test failed
            record.put({"failed": f"exit code {done.returncode}", "output": _told(done.stdout + done.stderr)}, "tests")
            sys.exit(f"pytest could not run the tests: exit code {done.returncode}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    problems = {
        f"{case.get('classname')}::{case.get('name')}": f"{outcome.tag}: {_line(outcome.get('message'))}"
        for case in cases
        for outcome in case
        if outcome.tag in ("failure", "error", "skipped")
    }
    found: dict[str, Any] = {"ran": len(cases), "passed": len(cases) - len(problems), "others": problems}
    if done.returncode:
        found["output"] = _told(done.stdout)
    record.put(found, "tests")


def _told(said: str) -> str:
    """The end of pytest's output, without the tests that were skipped."""
    return "\n".join(line for line in said.splitlines() if " SKIPPED " not in line)[-MOST_OUTPUT:]


def _line(message: str | None) -> str:
    return (message or "").strip().split("\n", 1)[0][:300]


def bundles(job: Job, record: Record) -> None:
    """Make the bundles that are not there yet, several at a time: with random weights, which are made from their seed."""
    wanted = (SMALL_BUNDLES if job.small else BUNDLES)[job.part]
    missing = [one for one in wanted if not (Path(job.bundles) / "-".join(one) / "manifest.json").exists()]
    shares = core_shares(sorted(os.sched_getaffinity(0)))
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for share in shares:
        free.put(share)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def make(one: tuple[str, str]) -> None:
        share = free.get()
        command = [sys.executable, str(Path(__file__)), "export", job.bundles, *one, *map(str, share)]
        left = max(job.seconds_left, 1)
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=left)
            outcome = (
                "made" if done.returncode == 0 else f"failed: {(done.stderr.strip() or '?').splitlines()[-1][:300]}"
            )
        except subprocess.TimeoutExpired:
            outcome = "not made: no time was left"
        finally:
            free.put(share)
        record.put(outcome, "exports", "-".join(one))

    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(make, missing))


def core_shares(cores: Sequence[int]) -> list[list[int]]:
    """The processor's cores that each export has to itself, but for a few that are left to what is measured meanwhile: where exports that
    think that they are alone share cores, their threads wait for each other's."""
    shares = [
        list(cores[start : start + CORES_EACH]) for start in range(CORES_LEFT, len(cores) - CORES_EACH + 1, CORES_EACH)
    ]
    return shares or [list(cores)]


def export_one(folder: str, model: str, precision: str, *cores: str) -> None:
    """Export one bundle into `folder`, on these cores."""
    os.sched_setaffinity(0, set(map(int, cores)))  # before a library counts them
    from exporter import ExportPlan, export

    weights = "default" if model == "resnet20" else "random"
    images = CALIBRATION_IMAGES if precision == "int8" else None
    export(
        ExportPlan(
            model,
            Path(folder) / f"{model}-{precision}",
            precision=precision,
            weights=weights,
            calibration_images=images,
        )
    )


def parity(job: Job, record: Record) -> None:
    """Every bundle on every backend and provider: the comparison with its golden outputs, and the time of a call."""
    runs = SMALL_RUNS if job.small else RUNS
    for backend, provider in runs[job.part]:
        for one in (SMALL_BUNDLES if job.small else BUNDLES)[job.part]:
            name = backend if provider is None else f"{backend} ({provider})"
            if job.seconds_left < SECONDS_TO_PROVE:
                found: Any = {"failed": "not run: no time was left"}
            else:
                found = attempt(_proven, Path(job.bundles) / "-".join(one), backend, provider)
            record.put(found, "bundles", "-".join(one), name)


def _proven(folder: Path, backend: str, provider: str | None) -> dict[str, Any]:
    """The comparison with the golden outputs, and the median time of `Runtime.run` at batch 1 and the largest, copies included."""
    if backend == "pytorch" or provider is not None:
        import torch  # noqa: F401  # brings the CUDA libraries
    import msgspec
    import numpy as np

    from runtimes import Bundle, open_runtime
    from runtimes.parity.golden import golden_arrays, golden_report

    bundle = Bundle.open(folder)
    if backend.startswith("tensorrt"):
        from exporter.engines.build import BuildPlan, build_engine

        build_engine(BuildPlan(bundle, backend), lambda step, done=0, total=0: None)
    with open_runtime(bundle, backend, provider=provider) as runtime:
        report = golden_report(bundle, backend, runtime)
        inputs, _ = golden_arrays(bundle)
        latency_ms = {}
        for rows in (1, bundle.manifest.batch.max):
            feeds = {runtime.inputs[0].name: inputs[np.resize(np.arange(len(inputs)), rows)]}
            latency_ms[str(rows)] = median_ms(partial(runtime.run, feeds), seconds=0.3)
    return {"parity": msgspec.to_builtins(report.backends[backend]), "median_latency_ms": latency_ms}


def foreign(job: Job, record: Record) -> None:
    """What TensorRT-RTX says of an engine that was built for sm80, whatever GPU this is."""
    record.put(attempt(_foreign, Path(job.bundles)), "tensorrt-rtx engine for sm80")


def _foreign(folder: Path) -> str:
    from exporter.engines.build import BuildPlan, build_engine
    from exporter.engines.builders import BuildOptions
    from runtimes import Bundle, open_runtime

    plan = BuildPlan(Bundle.open(folder / "resnet20-fp16"), "tensorrt-rtx", BuildOptions(targets=("sm80",)))
    engine = build_engine(plan, lambda step, done=0, total=0: None)
    open_runtime(engine.path, "tensorrt-rtx").close()
    return "it loads"


def roofline(job: Job, record: Record) -> None:
    importlib.import_module("_gpu_torch").roofline(job, record)


def pytorch(job: Job, record: Record) -> None:
    importlib.import_module("_gpu_torch").speed(job, record)


def onnxruntime(job: Job, record: Record) -> None:
    importlib.import_module("_gpu_ort").speed(job, record)


STEPS: dict[str, Callable[[Job, Record], None]] = {
    step.__name__: step for step in (facts, tests, bundles, parity, foreign, roofline, pytorch, onnxruntime)
}


def main(arguments: list[str]) -> None:
    if arguments[0] == "export":
        export_one(*arguments[1:])
        return
    from runtimes.errors import ResnetExportError

    job = Job(**json.loads(arguments[0]))
    try:
        STEPS[job.step](job, Record(Path(job.record)))
    except ResnetExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
