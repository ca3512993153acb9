"""Measure what a plain session of each onnxruntime makes of our INT8 files, and print the table of docs/measured.md.

    python scripts/plain_sessions.py --python VENV/bin/python ... [--model NAME ...]

Each interpreter needs onnxruntime and numpy alone. The figures are the SQNR in dB of the golden images' logits against FP32. Exit code 4 where an
onnxruntime that rounds FP16 (1.30 and newer) loses more than 0.3 dB in a plain session against the simulation.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from exporter import ExportPlan, export
from exporter.lowering.precisions import int8
from exporter.lowering.qdq.biases import with_biases_inside
from exporter.models.registry import MODELS
from runtimes import Bundle
from runtimes.backends.onnxruntime import FP16_ROUNDS, OnnxRuntime
from runtimes.errors import BackendUnavailable, ResnetExportError
from runtimes.parity.golden import golden_arrays
from runtimes.parity.measures import sqnr_db

MOST_LOST_DB = 0.3
CALIBRATION_IMAGES = 64
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""What integer kernels of CPUs differ by."""
FORMS = ("as written", "plain", "plain, biases inside")
RUN = """
import sys, numpy as np, onnxruntime as ort
model, inputs, outputs, level = sys.argv[1:]
options = ort.SessionOptions()
options.log_severity_level = 3
options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
np.save(outputs, session.run(None, {session.get_inputs()[0].name: np.load(inputs)})[0])
print(ort.__version__)
"""

Version = tuple[int, ...]


class Exported:
    """An INT8 bundle's files in both forms, its golden images, and what FP32 and the simulation make of them."""

    def __init__(self, name: str, folder: Path) -> None:
        weights = "default" if MODELS[name].weights and MODELS[name].source == "cifar" else "random"
        plan = ExportPlan(
            name, folder / "bundle", precision="int8", weights=weights, calibration_images=CALIBRATION_IMAGES
        )
        export(plan)
        bundle = Bundle.open(folder / "bundle")
        self.name, self.folder = f"{name}, {'shipped' if weights == 'default' else 'random'} weights", folder
        inputs, outputs = golden_arrays(bundle)
        (self.reference,) = outputs.values()
        np.save(folder / "inputs.npy", inputs)
        model = onnx.load(bundle.file("model.onnx"))
        onnx.save(model, folder / "behind.onnx")
        onnx.save(with_biases_inside(model), folder / "inside.onnx")
        with OnnxRuntime.from_bytes(int8.simulation(model).SerializeToString()) as runtime:
            simulated = runtime.run({runtime.inputs[0].name: inputs})[runtime.outputs[0].name]
        self.simulated_db = sqnr_db(self.reference, simulated)

    def measure(self, python: Path) -> tuple[Version, list[float]]:
        """The version of an interpreter's onnxruntime, and the SQNR of `FORMS`.

        Raises:
            BackendUnavailable: it does not run there; with its last words.
        """
        found, version = [], ""
        for file, level in (
            ("behind", "ORT_DISABLE_ALL"),
            ("behind", "ORT_ENABLE_ALL"),
            ("inside", "ORT_ENABLE_ALL"),
        ):
            given = [self.folder / f"{file}.onnx", self.folder / "inputs.npy", self.folder / "outputs.npy", level]
            done = subprocess.run([python, "-c", RUN, *given], capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise BackendUnavailable(f"{python}: {last}; expected an interpreter with onnxruntime and numpy")
            version = done.stdout.split()[-1]
            outputs: NDArray[np.float32] = np.load(self.folder / "outputs.npy")
            found.append(sqnr_db(self.reference, outputs))
        return tuple(int(part) for part in version.split(".")), found


def machine() -> str:
    """The processor, and those of its instructions that integer kernels differ by."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return (
        f"{platform.machine()}, {name or 'unknown CPU'} ({', '.join(flag for flag in FLAGS if flag in text.split())})"
    )


def print_table(models: Sequence[Exported], pythons: Sequence[Path]) -> bool:
    """Print the table; whether every onnxruntime that rounds FP16 keeps to `MOST_LOST_DB`."""
    names = [f"{form}, {model.name.split(',')[0]}" for model in models for form in FORMS]
    click.echo(f"| onnxruntime | {' | '.join(names)} |")
    click.echo(f"| --- |{' ---: |' * len(names)}")
    simulated = [cell for model in models for cell in (f"{model.simulated_db:.1f}", "", "")]
    click.echo(f"| simulation | {' | '.join(simulated)} |")
    keeps = True
    for python in pythons:
        rows = [model.measure(python) for model in models]
        version = rows[0][0]
        click.echo(f"| {'.'.join(map(str, version))} | {' | '.join(f'{one:.1f}' for _, row in rows for one in row)} |")
        if version >= FP16_ROUNDS:
            keeps &= all(
                row[1] > model.simulated_db - MOST_LOST_DB for model, (_, row) in zip(models, rows, strict=True)
            )
    click.echo(f"\nMeasured {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} on {machine()}.")
    click.echo(
        f"Models: {'; '.join(model.name for model in models)}; calibrated on {CALIBRATION_IMAGES} built-in images."
    )
    return keeps


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An interpreter with onnxruntime and numpy; may be given again.  [default: this one]",
)
@click.option(
    "--model",
    "names",
    multiple=True,
    default=("resnet20", "resnet18", "resnet50"),
    show_default=True,
    type=click.Choice(list(MODELS)),
)
def main(pythons: tuple[Path, ...], names: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            models = []
            for name in names:
                (Path(folder) / name).mkdir()
                models.append(Exported(name, Path(folder) / name))
            keeps = print_table(models, pythons or (Path(sys.executable),))
        except ResnetExportError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
    sys.exit(0 if keeps else 4)


if __name__ == "__main__":
    main()
