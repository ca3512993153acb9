"""Run every check that needs an NVIDIA GPU, and write what was found to docs/measurements/.

    python scripts/gpu_checks.py [--output FILE]

Runs the tests marked `gpu`; proves bundles on every backend and provider that runs here, by their golden inputs; and tries once whether a
TensorRT-RTX engine loads. Each part is recorded as it came out, failures too. Without a GPU: exit code 3.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from exporter import ExportPlan, export
from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions
from runtimes import Bundle, Runtime, open_runtime
from runtimes.errors import ResnetExportError
from runtimes.nvidia.cuda import Device, device
from runtimes.parity.golden import golden_arrays, golden_report

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "numpy",
    "onnx",
)
RUNS = (
    ("onnxruntime", "cuda"),
    ("onnxruntime", "tensorrt"),
    ("pytorch", "cuda"),
    ("tensorrt", None),
    ("tensorrt-rtx", None),
)
MODELS = (("resnet20", "default"), ("resnet50", "random"))
PRECISIONS = ("fp32", "fp16", "int8")
WARM_UP, TIMED = 10, 50


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tests(folder: Path) -> dict[str, Any]:
    """The tests marked `gpu`: how many passed, and what became of the others."""
    report = folder / "gpu.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", str(ROOT / "tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not report.exists():
        return {"error": done.stdout[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    problems = {
        f"{case.get('classname')}::{case.get('name')}": f"{outcome.tag}: {(outcome.get('message') or '').splitlines()[0][:300]}"
        for case in cases
        for outcome in case
        if outcome.tag in ("failure", "error", "skipped")
    }
    return {"ran": len(cases), "passed": len(cases) - len(problems), "others": problems}


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` gives, or in which words it failed."""
    try:
        return work()
    except ResnetExportError as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def prove(bundle: Bundle, backend: str, provider: str | None) -> dict[str, Any]:
    """The comparison with the golden logits, and the median latency at batch 1 and at the largest, copies included, in milliseconds."""
    if backend.startswith("tensorrt"):
        build_engine(BuildPlan(bundle, backend), lambda step, done=0, total=0: None)
    with open_runtime(bundle, backend, provider=provider) as runtime:
        report = golden_report(bundle, backend, runtime)
        inputs, _ = golden_arrays(bundle)
        latency_ms = {str(rows): median_ms(runtime, inputs, rows) for rows in (1, bundle.manifest.batch.max)}
    return {"parity": msgspec.to_builtins(report.backends[backend]), "median_latency_ms": latency_ms}


def median_ms(runtime: Runtime, inputs: Any, rows: int) -> float:
    """Of TIMED calls, after WARM_UP ones."""
    feeds = {runtime.inputs[0].name: inputs[np.resize(np.arange(len(inputs)), rows)]}
    seconds = []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        runtime.run(feeds)
        seconds.append(time.perf_counter() - start)
    return round(float(np.median(seconds[WARM_UP:])) * 1e3, 3)


def bundles(folder: Path) -> dict[str, Any]:
    """Every model, precision, backend and provider."""
    found: dict[str, Any] = {}
    for model, weights in MODELS:
        for precision in PRECISIONS:
            plan = ExportPlan(model, folder / f"{model}-{precision}", precision=precision, weights=weights)
            bundle = Bundle.open(export(plan).folder)
            for backend, provider in RUNS:
                name = backend if provider is None else f"{backend} ({provider})"
                click.echo(f"{model} {precision} {name}", err=True)
                found.setdefault(f"{model}-{precision}", {})[name] = attempt(partial(prove, bundle, backend, provider))
    return found


def foreign_engine(folder: Path) -> Any:
    """What TensorRT-RTX says of an engine built for sm80 on this GPU, whatever it is."""
    plan = ExportPlan("resnet20", folder / "foreign", precision="fp16")
    bundle = Bundle.open(export(plan).folder)
    engine = build_engine(
        BuildPlan(bundle, "tensorrt-rtx", BuildOptions(targets=("sm80",))), lambda step, done=0, total=0: None
    )
    return attempt(lambda: open_runtime(engine.path, "tensorrt-rtx").close() or "it loads")


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--output", type=click.Path(path_type=Path), help="The result file.  [default: docs/measurements/DATE-GPU.json]"
)
def main(output: Path | None) -> None:
    try:
        gpu: Device = device()
    except ResnetExportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "date": today,
            "device": asdict(gpu),
            "platform": platform.platform(),
            "versions": versions(),
            "tests": tests(folder),
            "bundles": bundles(folder),
            "tensorrt-rtx engine for sm80": attempt(lambda: foreign_engine(folder)),
        }
    path = output or ROOT / "docs" / "measurements" / f"{today}-{gpu.name.replace(' ', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(str(path))


if __name__ == "__main__":
    main()
