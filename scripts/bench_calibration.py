"""Time and memory of calibrating ResNet-50 at 224 pixels: ours beside a bare forward pass and onnxruntime's own calibrators.

    python scripts/bench_calibration.py [--few 64] [--many 512]

Each run is a process of its own, so that its peak memory is its own. Prints seconds, images per second, peak memory and ratios.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

BATCH = 2
KEPT = 64
"""How many pictures a calibration hands on to what follows it."""


def prepare_model(folder: Path) -> Path:
    """ResNet-50's simplified FP32 graph with random weights."""
    from exporter import ExportPlan, export

    bundle = export(ExportPlan("resnet50", folder / "bundle", weights="random", reference=False))
    return bundle.folder / "model.onnx"


def batches(count: int) -> Any:
    """Preprocessed built-in images, decoded while the model runs."""
    from calibration.data import built_in
    from calibration.sample import Sample
    from exporter.models.registry import MODELS
    from exporter.models.sources.torchvision import preprocess

    source = built_in("train")
    return Sample(source.subset(np.arange(count)), preprocess(MODELS["resnet50"])).batches(BATCH)


def forward(model: Path, count: int) -> None:
    """The same batches through a plain session."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch in batches(count):
        session.run(None, {"input": batch})


def ours(model: Path, count: int) -> None:
    """All calibrators' thresholds."""
    import onnx

    from calibration.collect import collect
    from calibration.observers import observers
    from exporter.lowering.precisions import int8

    graph = onnx.load(model)
    histograms = collect(graph, int8.observed_tensors(graph), batches(count))
    for observer in observers().values():
        for histogram in histograms.values():
            observer(histogram)


def sensitivity(model: Path, count: int) -> None:
    """The damage of every block, on as many images as an export takes; what it costs does not depend on the ranges."""
    import onnx

    from exporter.lowering.precisions import int8
    from exporter.lowering.sensitivity import measure_sensitivity

    graph = onnx.load(model)
    lowered = int8.lower(graph, dict.fromkeys(int8.observed_tensors(graph), 8.0))
    measure_sensitivity(int8, graph, lowered, np.concatenate(list(batches(count))))


def peer(model: Path, count: int, kind: str) -> None:
    """onnxruntime's calibrator of that name over the same tensors' operators."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches = batches(count)

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            model, ["Conv", "Add", "MaxPool"], f"{folder}/augmented.onnx", CalibrationMethod[kind]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def peak_gb() -> float:
    """Peak resident memory of this process (Linux). `getrusage` would start from the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1e6


def measure(name: str, model: Path, count: int) -> dict[str, float]:
    """Seconds (without imports) and peak memory of one run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--run", name, "--model", str(model), "--few", str(count)],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    click.echo(
        f"{name:<12} {count:>5} images {result['seconds']:>8.1f} s {count / result['seconds']:>7.1f} images/s   peak {result['peak_gb']:.2f} GB"
    )
    return result


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--few", default=64, show_default=True)
@click.option("--many", default=512, show_default=True)
@click.option("--run", "name", help="Run one and print its figures as JSON.")
@click.option("--model", type=click.Path(path_type=Path))
def main(few: int, many: int, name: str | None, model: Path | None) -> None:
    if name is not None and model is not None:
        import onnx  # noqa: F401  # imports are not what is measured
        import onnxruntime  # noqa: F401  # as above
        import torchvision  # noqa: F401  # as above

        start, work = time.perf_counter(), time.process_time()
        runs: dict[str, Any] = {"forward": forward, "ours": ours, "sensitivity": sensitivity}
        if name in runs:
            runs[name](model, few)
        else:
            peer(model, few, name)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - work
        click.echo(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak_gb()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = prepare_model(Path(folder))
        plain, own = measure("forward", path, few), measure("ours", path, few)
        theirs = {kind: measure(kind, path, few) for kind in ("Entropy", "Percentile")}
        plain_many, own_many = measure("forward", path, many), measure("ours", path, many)
        blocks = measure("sensitivity", path, KEPT)
    for count, mine, bare in ((few, own, plain), (many, own_many, plain_many)):
        click.echo(f"time of ours / a bare forward pass, {count} images: {mine['seconds'] / bare['seconds']:.2f}")
    click.echo(f"peak of ours, {many} / {few} images: {own_many['peak_gb'] / own['peak_gb']:.2f}")
    share = blocks["cpu_seconds"] / own_many["cpu_seconds"]
    click.echo(f"processor time of the sensitivity of all blocks / of ours, {many} images: {share:.2f}")
    for kind, result in theirs.items():
        ratio, memory = result["seconds"] / own["seconds"], result["peak_gb"] / own["peak_gb"]
        click.echo(
            f"onnxruntime's {kind} / ours, {few} images: {ratio:.1f} times the time, {memory:.1f} times the memory"
        )


if __name__ == "__main__":
    main()
