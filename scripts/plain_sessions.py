"""Measure what a plain session of each onnxruntime makes of our INT8 bundles, and print the table of docs/measured.md.

    python scripts/plain_sessions.py BUNDLE... --python VENV/bin/python ...

Each interpreter needs onnxruntime and numpy alone. The figures are the SQNR in dB of the golden images' outputs against FP32. Exit code 4 where a
plain session is more than 0.3 dB off what the same onnxruntime makes of the file as it is written.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.lowering.precisions import int8
from exporter.lowering.qdq.biases import with_biases_inside
from runtimes import Bundle
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, BadInput, ResnetExportError
from runtimes.parity.golden import golden_arrays
from runtimes.parity.measures import sqnr_db
from runtimes.processor import processor

MOST_OFF_DB = 0.3
"""What integer kernels of CPUs differ by."""
OFF, DEFAULT = "ORT_DISABLE_ALL", "ORT_ENABLE_ALL"
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


class Row(NamedTuple):
    """What one onnxruntime makes of a bundle: its version, and the SQNR of `FORMS`."""

    version: str
    decibels: tuple[float, ...]


class Measured:
    """An INT8 bundle's file in both forms, its golden images, and what FP32 and the simulation make of them.

    Raises:
        BadInput: the bundle is of another precision, or has several outputs.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        manifest = bundle.manifest
        if manifest.precision != "int8" or len(manifest.outputs) > 1:
            raise BadInput(
                f"expected an int8 bundle of one output, got {manifest.precision} of {len(manifest.outputs)}: "
                f"{bundle.folder}; export one with --int8, without --features stages"
            )
        inputs, outputs = golden_arrays(bundle)
        (self.reference,) = outputs.values()
        self.name = f"{manifest.model.name} ({manifest.model.weights.kind} weights, {len(inputs)} images)"
        self.folder = folder
        np.save(folder / "inputs.npy", inputs)
        model = onnx.load(bundle.file("model.onnx"))
        onnx.save(model, folder / "behind.onnx")
        onnx.save(with_biases_inside(model), folder / "inside.onnx")
        with OnnxRuntime.from_bytes(int8.simulation(model).SerializeToString()) as runtime:
            (simulated,) = runtime.run({runtime.inputs[0].name: inputs}).values()
        self.simulated_db = sqnr_db(self.reference, simulated)

    def measure(self, python: Path) -> Row:
        """What an interpreter's onnxruntime makes of the file.

        Raises:
            BackendUnavailable: it does not run there; with its last words.
        """
        found, version = [], ""
        for file, level in (("behind", OFF), ("behind", DEFAULT), ("inside", DEFAULT)):
            given = [self.folder / f"{file}.onnx", self.folder / "inputs.npy", self.folder / "outputs.npy"]
            done = subprocess.run([python, "-c", RUN, *given, level], capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise BackendUnavailable(f"{python}: {last}; expected an interpreter with onnxruntime and numpy")
            version = done.stdout.split()[-1]
            outputs: NDArray[np.float32] = np.load(self.folder / "outputs.npy")
            found.append(sqnr_db(self.reference, outputs))
        return Row(version, tuple(found))


def print_table(bundles: Sequence[Measured], pythons: Sequence[Path]) -> bool:
    """Print the table; whether every plain session keeps to `MOST_OFF_DB`."""
    click.echo(f"| onnxruntime | {' | '.join(f'{one.name.split()[0]}, {form}' for one in bundles for form in FORMS)} |")
    click.echo(f"| --- |{' ---: |' * len(bundles) * len(FORMS)}")
    keeps = True
    for python in pythons:
        rows = [bundle.measure(python) for bundle in bundles]
        cells = " | ".join(f"{one:.1f}" for row in rows for one in row.decibels)
        click.echo(f"| {rows[0].version} | {cells} |")
        keeps &= all(abs(row.decibels[1] - row.decibels[0]) <= MOST_OFF_DB for row in rows)
    click.echo(f"\nMeasured {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} on {processor()}.")
    click.echo("; ".join(f"{one.name}: the simulation has {one.simulated_db:.1f} dB" for one in bundles))
    return keeps


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("folders", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An interpreter with onnxruntime and numpy; may be given again.  [default: this one]",
)
def main(folders: tuple[Path, ...], pythons: tuple[Path, ...]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            bundles = []
            for place, folder in enumerate(folders):
                (Path(temporary) / str(place)).mkdir()
                bundles.append(Measured(Bundle.open(folder), Path(temporary) / str(place)))
            keeps = print_table(bundles, pythons or (Path(sys.executable),))
        except ResnetExportError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
    sys.exit(0 if keeps else 4)


if __name__ == "__main__":
    main()
