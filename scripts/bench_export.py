"""How long an export takes beside a bare script of the same calls, and how fast `--help` is. One run, medians, ratios.

    python scripts/bench_export.py [--model resnet50] [--repeats 3]

Both load the same weights from a file. The bare script imports torch and torchvision, calls torch.onnx.export, onnxsim.simplify, an FP16 conversion and one ONNX Runtime check
against PyTorch on the same images and batches. It proves less: no bundle, no simulation of FP16 arithmetic, no check of the simplifier.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from runtimes.cores import usable_cores
from runtimes.processor import processor

BATCHES = (1, 8, 32)
WANTED: dict[str, float | None] = {"bare": None, "ours": 1.4, "no report": 1.2}
"""What is compared, and at most how many times the bare script's seconds it may take."""


def bare(model: str, weights: Path) -> dict[str, float]:
    """Seconds of each step of the bare script."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name] = round(now - start, 3)
        start = now

    import numpy as np
    import onnx
    import onnxruntime as ort
    import onnxsim
    import torch
    import torchvision
    from onnx import TensorProto, helper, numpy_helper

    lap("load packages")
    module = torchvision.models.get_model(model, weights=None).eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    lap("weights")
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, 224, 224),), dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False
    )
    assert program is not None
    lap("trace")
    graph_model, _ = onnxsim.simplify(program.model_proto)
    lap("simplify")
    graph = graph_model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    source, result = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = [f"{name}.half" if name == source else name for name in node.input]
        node.output[:] = [f"{name}.half" if name == result else name for name in node.output]
    nodes = [
        helper.make_node("Cast", [source], [f"{source}.half"], to=TensorProto.FLOAT16),
        *graph.node,
        helper.make_node("Cast", [f"{result}.half"], [result], to=TensorProto.FLOAT),
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    lap("lower to fp16")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(graph_model, path)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randn(max(BATCHES), 3, 224, 224)
    with torch.inference_mode():
        expected = torch.cat([module(part) for part in images.tensor_split(4)]).numpy()
    for size in BATCHES:
        got = session.run(None, {source: images[:size].numpy()})[0]
        assert np.abs(got - expected[:size]).max() < 0.05 * np.abs(expected).max()
    lap("prove")
    return seconds


def ours(model: str, weights: Path, *options: str) -> dict[str, float]:
    """Seconds of each step of `resnet-export MODEL --fp16 --weights FILE`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("resnet-export")),
            model,
            "--fp16",
            "--weights",
            str(weights),
            *options,
            "--json",
            "--quiet",
        ]
        output = subprocess.run(
            [*command, "--output", f"{folder}/bundle"], check=True, capture_output=True, text=True
        ).stdout
    seconds: dict[str, float] = json.loads(output)["seconds"]
    return seconds


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in GB of a command and its children."""
    probe = (
        "import json, resource, subprocess, sys, time; start = time.perf_counter();"
        "out = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout;"
        "print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, out]))"
    )
    out = subprocess.run([sys.executable, "-c", probe, *command], check=True, capture_output=True, text=True).stdout
    seconds, peak, text = json.loads(out)
    RESULTS.append(text)
    return float(seconds), float(peak)


RESULTS: list[str] = []


def save_weights(model: str, path: Path) -> None:
    """Weights that behave like trained ones, as `resnet-export --weights random` makes them."""
    import torch

    from exporter.models.loading import load_model
    from exporter.models.request import ModelRequest

    torch.save(load_model(ModelRequest(model, weights="random")).module.state_dict(), path)


def compare_exports(model: str, repeats: int) -> None:
    """Run all in turn, `repeats` times, and print step by step."""
    totals: dict[str, list[tuple[float, float]]] = {name: [] for name in WANTED}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in WANTED}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        save_weights(model, weights)
        for _ in range(repeats):
            for name in WANTED:
                command = [sys.executable, __file__, "--model", model, "--only", name, "--weights", str(weights)]
                totals[name].append(measure(command))
                steps[name].append(json.loads(RESULTS[-1]))
    names = list(dict.fromkeys(step for name in WANTED for step in steps[name][0]))
    click.echo(f"{'step':<16}" + "".join(f" {name + ' s':>12}" for name in WANTED))
    for step in names:
        medians = [statistics.median(run.get(step, 0.0) for run in steps[name]) for name in WANTED]
        click.echo(f"{step:<16}" + "".join(f" {one:>12.2f}" for one in medians))
    for place, what in enumerate(("whole process", "peak memory GB")):
        values = {name: statistics.median(run[place] for run in runs) for name, runs in totals.items()}
        click.echo(f"{what:<16}" + "".join(f" {one:>12.2f}" for one in values.values()))
        for name, most in WANTED.items():
            if most is not None:
                wanted = f" (wanted: at most {most})" if place == 0 else ""
                click.echo(f"    {name} / bare: {values[name] / values['bare']:.2f}{wanted}")
    click.echo(f"processor: {processor()}, {usable_cores()} cores")


def compare_help(repeats: int) -> None:
    """`resnet-export --help` beside an interpreter that imports click and rich."""
    commands = {
        "import click, rich": [sys.executable, "-c", "import click, rich"],
        "resnet-export --help": [str(Path(sys.executable).with_name("resnet-export")), "--help"],
        "resnet-deploy --help": [str(Path(sys.executable).with_name("resnet-deploy")), "--help"],
    }
    medians = {}
    for name, command in commands.items():
        runs = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            runs.append(time.perf_counter() - start)
        medians[name] = statistics.median(runs)
    for name, value in medians.items():
        click.echo(
            f"{name:<22} {value * 1000:>6.0f} ms   ratio {value / medians['import click, rich']:.2f} (wanted: at most 2)"
        )


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--model", default="resnet50", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--only", type=click.Choice(list(WANTED)), help="Run one of them and print its steps as JSON.")
@click.option("--weights", type=click.Path(path_type=Path), help="For --only: the weights to load.")
def main(model: str, repeats: int, only: str | None, weights: Path | None) -> None:
    if only is not None:
        if weights is None:
            raise click.UsageError("expected --weights with --only, got none; name a file of the model's weights")
        options = ["--no-report"] if only == "no report" else []
        click.echo(json.dumps(bare(model, weights) if only == "bare" else ours(model, weights, *options)))
        return
    compare_help(max(11, repeats))
    compare_exports(model, repeats)


if __name__ == "__main__":
    main()
