"""How long an export of an ONNX file takes beside that of the same network from PyTorch, and the memory of both. One run, medians, ratios.

    python scripts/bench_file_export.py [--model resnet50] [--repeats 3]

Both export the same weights in FP16. PyTorch's seconds are counted without its tracing, for which a file needs nothing. The memory of taking the file in is measured in a process of
its own, above what that holds once the packages are imported; of the exports, it is the whole process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import click
from bench_export import RESULTS, measure, save_weights

from runtimes.cores import usable_cores
from runtimes.processor import processor

MOST = 1.2
"""How many times PyTorch's seconds without tracing the file's export may take."""
MOST_MEMORY = 4.0
"""How many times the file's own size taking it in should take."""
TOLD = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def write_file(model: str, weights: Path, path: Path) -> None:
    """The network as PyTorch's older exporter writes it, for one image at a time, its batch norms unfolded."""
    import torch
    import torchvision

    module = torchvision.models.get_model(model, weights=None).eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter is an older one
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 224, 224),),
            path,
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )


def take_in(path: Path) -> float:
    """The most memory in bytes that taking a file in adds to what this process holds already."""
    import exporter.pipeline.export  # noqa: F401  # what an export has in memory anyway
    from exporter.graph.intake.read import read_model_file, save_reference
    from exporter.graph.intake.take import open_file, take_file
    from runtimes.preprocess import Preprocess

    own = Preprocess(224, (224, 224), "bilinear", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    with tempfile.TemporaryDirectory() as folder:
        file, reference = read_model_file(path), Path(folder) / "reference.onnx"
        save_reference(file, reference)
        take_file(open_file(file), reference, own, opset=20)
    return (_kilobytes("VmHWM") - before) * 1024.0


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def export_seconds(model: str, options: tuple[str, ...]) -> tuple[dict[str, float], float]:
    """Seconds by step of `resnet-export MODEL --fp16`, and the peak memory of its process in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("resnet-export")), model, "--fp16", *options, "--json", "--quiet"]
        _, peak = measure([*command, "--output", f"{folder}/bundle"])
    seconds: dict[str, float] = json.loads(RESULTS[-1])["seconds"]
    return seconds, peak


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--model", default="resnet50", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--take", type=click.Path(path_type=Path), help="Take this file in, and print the memory that it took.")
def main(model: str, repeats: int, take: Path | None) -> None:
    if take is not None:
        click.echo(take_in(take))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder) / "weights.pth", Path(folder) / f"{model}.onnx"
        save_weights(model, weights)
        write_file(model, weights, path)
        size = path.stat().st_size
        runs: dict[str, list[tuple[dict[str, float], float]]] = {"PyTorch": [], "file": []}
        memory = []
        for _ in range(repeats):
            runs["PyTorch"].append(export_seconds(model, ("--weights", str(weights))))
            runs["file"].append(export_seconds(str(path), TOLD))
            command = [sys.executable, __file__, "--take", str(path)]
            memory.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    names = list(dict.fromkeys(step for found in runs.values() for step in found[0][0]))
    click.echo(f"{'step':<16}" + "".join(f" {name + ' s':>12}" for name in runs))
    for step in names:
        medians = [statistics.median(seconds.get(step, 0.0) for seconds, _ in found) for found in runs.values()]
        click.echo(f"{step:<16}" + "".join(f" {one:>12.2f}" for one in medians))
    totals = {
        name: statistics.median(
            sum(value for step, value in seconds.items() if step != "trace") for seconds, _ in found
        )
        for name, found in runs.items()
    }
    click.echo(f"{'without trace':<16}" + "".join(f" {one:>12.2f}" for one in totals.values()))
    click.echo(f"    file / PyTorch: {totals['file'] / totals['PyTorch']:.2f} (wanted: at most {MOST})")
    peaks = {name: statistics.median(peak for _, peak in found) for name, found in runs.items()}
    click.echo(f"{'peak memory GB':<16}" + "".join(f" {one:>12.2f}" for one in peaks.values()))
    click.echo(
        f"taking the file of {size / 1e6:.0f} MB in: {statistics.median(memory) / 1e6:.0f} MB more, "
        f"{statistics.median(memory) / size:.1f} times its size (wanted: at most {MOST_MEMORY:g})"
    )
    click.echo(f"processor: {processor()}, {usable_cores()} cores")


if __name__ == "__main__":
    main()
