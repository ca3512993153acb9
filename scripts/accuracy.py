"""Print the accuracy table of docs/measured.md: FP32, FP16, and INT8 by every calibrator and by others' tools, on the same images.

    python scripts/accuracy.py --data /usr/share/datasets/fashion-mnist [--modelopt-python PYTHON] [--bundle FP32-BUNDLE]

Everyone is calibrated on the same images and judged on the same ones. "Exact" runs Q/DQ pairs as they are written and rounds what
is FP16 as a device does; "file" is the model file in ONNX Runtime as it comes, which fuses the pairs into its own INT8 kernels.

NVIDIA ModelOpt wants an environment of its own (other versions of onnx and onnxruntime, several GB):

    python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]'
    python scripts/accuracy.py --modelopt-python modelopt/bin/python
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime import quantization as ort_quantization
from rich.console import Console
from rich.progress import track

from calibration.classes import ModelClasses, match_source
from calibration.collect import BATCH, collect
from calibration.data import ImageSource, built_in, choose_evenly, inputs_from_source, open_source
from calibration.observers import observers
from exporter import ExportPlan, export
from exporter.lowering.bias_correction import mean_error, subtract_from_bias
from exporter.lowering.precisions import fp16, int8
from exporter.lowering.ranges import CORRECTION_IMAGES
from exporter.lowering.request import CALIBRATOR
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, ResnetExportError
from runtimes.parity.intervals import wilson_interval
from runtimes.parity.measures import sqnr_db

CALIBRATION_IMAGES, SEED = 512, 0
RUN_BATCH = 16
MODELOPT_METHODS = ("entropy", "max")
METHODS = ("MinMax", "Entropy", "Percentile")
ERRORS_ONLY = 3
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """What everyone is calibrated on and judged on: float32 (images, channels, height, width); int64 labels (images,)."""

    calibration: Floats
    test: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """A row to be: the graph that rounds as a device does, and the model as it is stored."""

    name: str
    exact: onnx.ModelProto
    file: bytes


class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Hands onnxruntime one image at a time, as its examples and ModelOpt do."""

    def __init__(self, name: str, images: Floats) -> None:
        self._feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)


def images_for(bundle: Bundle, data: Path | None, calibration_data: str, count: int | None) -> Images:
    """The pictures, through the model's own preprocessing.

    Raises:
        BadInput: the test images have no labels, or none that are the model's classes for certain.
    """
    test, _ = match_source(test_source(data), ModelClasses(bundle.manifest.model.classes, bundle.labels))
    assert test.labels is not None
    source = open_source(calibration_data)
    preprocess = bundle.manifest.preprocess
    chosen = source.subset(choose_evenly(source, CALIBRATION_IMAGES, SEED))
    inputs = inputs_from_source(test, preprocess, count or test.count)
    return Images(inputs_from_source(chosen, preprocess, chosen.count), inputs, test.labels[: len(inputs)])


def test_source(data: Path | None) -> ImageSource:
    """The test images of an IDX folder; any other source as it is; the 2,000 built-in ones where none is given."""
    if data is None:
        return built_in("test")
    return open_source(str(data), split="test")


def logits(model: bytes, inputs: Floats, level: Any) -> Floats:
    """Outputs of ONNX Runtime on the CPU, float32 (images, classes), with graph optimisations up to `level`."""
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.graph_optimization_level = level
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: inputs[start : start + RUN_BATCH]})[0] for start in range(0, len(inputs), RUN_BATCH)]
    )


def ours(model: onnx.ModelProto, images: Images) -> Iterator[Candidate]:
    """FP16, and INT8 by each calibrator."""
    half = fp16.lower(model, {})
    yield Candidate("FP16", fp16.simulation(half), half.SerializeToString())
    histograms = collect(model, int8.observed_tensors(model), batches(images.calibration))
    for name, observer in observers().items():
        lowered = as_exported(model, {tensor: observer(histogram) for tensor, histogram in histograms.items()}, images)
        yield Candidate(f"INT8, {name}", int8.simulation(lowered), lowered.SerializeToString())


def as_exported(model: onnx.ModelProto, thresholds: dict[str, float], images: Images) -> onnx.ModelProto:
    """The INT8 graph with its mean error taken off the classifier's bias, as the exporter writes it."""
    lowered = int8.lower(model, thresholds)
    spread = np.linspace(0, len(images.calibration) - 1, CORRECTION_IMAGES).astype(np.int64)
    error = mean_error(model, int8.simulation(lowered), batches(images.calibration[spread]))
    biased = subtract_from_bias(model, error.astype(np.float32))
    return lowered if biased is None else int8.lower(biased, thresholds)


def batches(inputs: Floats) -> Iterator[Floats]:
    return (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))


def stranger(name: str, path: Path) -> Candidate:
    """Somebody else's Q/DQ file; what it holds in FP16 is rounded as ours is."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    return Candidate(name, int8.simulation(model), path.read_bytes())


def by_onnxruntime(path: Path, images: Images, folder: Path) -> Iterator[Candidate]:
    """`quantize_static` with its defaults, and with the options that TensorRT's explicit quantization asks for."""
    graph = onnx.load(path).graph
    everything = sorted({node.op_type for node in graph.node})
    for_tensorrt = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": False,
        "OpTypesToExcludeOutputQuantization": everything,
        "ForceQuantizeNoInputCheck": True,
    }
    styles: dict[str, dict[str, Any]] = {
        "defaults": {},
        "for TensorRT": {
            "per_channel": True,
            "op_types_to_quantize": ["Conv", "Add", "MaxPool"],
            "extra_options": for_tensorrt,
        },
    }
    for style, options in styles.items():
        for method in METHODS:
            output = folder / f"onnxruntime-{style}-{method}.onnx"
            reader = Reader(graph.input[0].name, images.calibration)
            with contextlib.redirect_stdout(sys.stderr):  # its calibrators print
                ort_quantization.quantize_static(
                    path, output, reader, calibrate_method=ort_quantization.CalibrationMethod[method], **options
                )
            yield stranger(f"onnxruntime {style}, {method}", output)


def by_modelopt(python: Path, path: Path, images: Images, folder: Path) -> Iterator[Candidate]:
    """NVIDIA ModelOpt's own command, in its own interpreter, on the CPU.

    Raises:
        BackendUnavailable: it cannot be imported there, or its command failed; with its last words.
    """
    version = modelopt_version(python)
    data = folder / "calibration.npy"
    np.save(data, images.calibration)
    for method in MODELOPT_METHODS:
        output = folder / f"modelopt-{method}.onnx"
        given = {
            "onnx_path": path,
            "calibration_data": data,
            "calibration_method": method,
            "calibration_eps": "cpu",
            "output_path": output,
        }
        options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        _output([python, "-m", "modelopt.onnx.quantization", "--quantize_mode", "int8", *options])
        yield stranger(f"ModelOpt {version}, {method}", output)


def modelopt_version(python: Path) -> str:
    """Of that interpreter.

    Raises:
        BackendUnavailable: it cannot be imported there.
    """
    return _output([python, "-c", "import modelopt.onnx.quantization; print(modelopt.__version__)"]).split()[-1]


def _output(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendUnavailable(
            f"--modelopt-python: {last}; expected an interpreter with nvidia-modelopt[onnx], see --help of scripts/accuracy.py"
        )
    return done.stdout


def candidates(path: Path, images: Images, modelopt: Path | None, folder: Path) -> Iterator[Candidate]:
    """Every row but FP32's, in the table's order."""
    yield from ours(onnx.load(path), images)
    yield from by_onnxruntime(path, images, folder)
    if modelopt is not None:
        yield from by_modelopt(modelopt, path, images, folder)


def top1(outputs: Floats, labels: NDArray[np.int64]) -> str:
    """Accuracy and its 95 % interval, in per cent."""
    correct = int((outputs.argmax(1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    return f"{correct / len(labels):.2%} [{low * 100:.2f}, {high * 100:.2f}]"


def row(candidate: Candidate, reference: Floats, images: Images) -> tuple[str, NDArray[np.bool_]]:
    """A candidate's line of the table, and which images it gets right, exact."""
    levels = ort.GraphOptimizationLevel
    exact = logits(candidate.exact.SerializeToString(), images.test, levels.ORT_DISABLE_ALL)
    file = logits(candidate.file, images.test, levels.ORT_ENABLE_ALL)
    agreement = (exact.argmax(1) == reference.argmax(1)).mean()
    line = (
        f"| {candidate.name} | {top1(exact, images.labels)} | {agreement:.2%} | {sqnr_db(reference, exact):.1f} | "
        f"{(file.argmax(1) == images.labels).mean():.2%} | {sqnr_db(reference, file):.1f} | {len(candidate.file) / 1e6:.2f} |"
    )
    return line, exact.argmax(1) == images.labels


def paired_test(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> str:
    """How many images each alone gets right, and how likely a split at least as uneven is if neither is better (McNemar 1947, exact)."""
    alone, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    trials = alone + other
    tail = sum(math.comb(trials, fewer) for fewer in range(min(alone, other) + 1)) / 2**trials
    return f"{alone} to {other}, p = {min(1.0, 2 * tail):.2f}"


def print_table(bundle: Bundle, images: Images, modelopt: Path | None) -> None:
    path = bundle.file("model.onnx")
    reference = logits(path.read_bytes(), images.test, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    shown = top1(reference, images.labels)
    click.echo("| | top-1, exact | agreement, exact | SQNR dB, exact | top-1, file | SQNR dB, file | MB |")
    click.echo("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    click.echo(f"| FP32 | {shown} | | | {shown.split()[0]} | | {path.stat().st_size / 1e6:.2f} |")
    with tempfile.TemporaryDirectory() as folder:
        rows = candidates(path, images, modelopt, Path(folder))
        right = {}
        for candidate in track(rows, "measuring", console=Console(stderr=True), transient=True):
            line, right[candidate.name] = row(candidate, reference, images)
            click.echo(line)
    default = right[f"INT8, {CALIBRATOR}"]
    others = [
        f"{name} {paired_test(default, theirs)}"
        for name, theirs in right.items()
        if not name.startswith(("FP16", "INT8"))
    ]
    click.echo(
        f"\nImages that {CALIBRATOR} alone gets right, to images that the other alone does: {'; '.join(others)}."
    )
    click.echo(
        f"\n{bundle.manifest.name}, {len(images.test)} test images, calibrated on {len(images.calibration)}; "
        f"onnxruntime {ort.__version__}; agreement and SQNR against FP32 in ONNX Runtime"
    )


@click.command(
    help=__doc__.split("\n", 1)[0], epilog="ModelOpt: pip install 'nvidia-modelopt[onnx]' in an environment of its own."
)
@click.option(
    "--bundle",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="An FP32 bundle.  [default: the shipped resnet20, exported now]",
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled test images, or an IDX folder.  [default: 2,000 built-in]",
)
@click.option(
    "--calibration-data",
    default="built-in",
    show_default=True,
    help=f"{CALIBRATION_IMAGES} of these are calibrated on.",
)
@click.option("--images", type=click.IntRange(min=1), help="Only so many test images.  [default: all]")
@click.option(
    "--modelopt-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter with nvidia-modelopt[onnx].",
)
def main(
    folder: Path | None, data: Path | None, calibration_data: str, images: int | None, modelopt_python: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if modelopt_python is not None:
                modelopt_version(modelopt_python)  # before minutes of work
            if folder is None:
                folder = export(ExportPlan("resnet20", Path(temporary) / "resnet20")).folder
            bundle = Bundle.open(folder)
            if bundle.manifest.precision != "fp32":
                raise BadInput(
                    f"--bundle: expected an fp32 bundle, got {bundle.manifest.precision}; export the model with --fp32"
                )
            print_table(bundle, images_for(bundle, data, calibration_data, images), modelopt_python)
        except ResnetExportError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
