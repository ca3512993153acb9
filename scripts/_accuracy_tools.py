"""What is compared by `scripts/accuracy.py`: our lowerings, and others' tools, each in a process and an interpreter of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from _accuracy_figures import Answers, answers_of
from _accuracy_networks import Images

from calibration import FEWEST_IMAGES
from exporter.lowering.lower import lower
from exporter.lowering.qdq.lint import lint
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.request import LoweringRequest
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable
from runtimes.progress import Steps

OURS = "ours"
OTHERWISE = "ours, not the default,"
HALF = "ours, FP16"
VARIANTS = {
    "onnxruntime for TensorRT": ("MinMax", "Percentile", "Entropy"),
    "ModelOpt": ("max", "entropy"),
    "AIMET for TensorRT": ("min_max", "tf_enhanced", "equalized, tf_enhanced"),
    "onnxruntime": ("MinMax", "Percentile", "Entropy"),
    "NNCF": ("mixed", "performance"),
    "AIMET": ("min_max", "tf_enhanced", "equalized, tf_enhanced"),
}
"""Tool -> its own ways to calibrate; whether TensorRT takes what comes out is looked at, not believed."""
PACKAGES = {"onnxruntime": "onnxruntime", "ModelOpt": "nvidia-modelopt", "NNCF": "nncf", "AIMET": "aimet-onnx"}
"""First word of a tool -> its package."""
QUANTIZE = Path(__file__).resolve().with_name("_quantize_elsewhere.py")


@dataclass(frozen=True)
class Candidate:
    """A lowering to measure.

    Attributes:
        precision: whose rounding its simulation adds.
        version: of the tool; part of what an answer that was kept is found by. Empty: measured anew each time.
        make: writes the model file.
    """

    tool: str
    variant: str
    precision: str
    version: str
    make: Callable[[Path], None]


@dataclass(frozen=True)
class Measured:
    """A candidate's answers, its size, and why TensorRT refuses it (empty: it takes it)."""

    answers: Answers
    bytes: int
    refused: str


def ours(bundle: Bundle, images: Images, calibrators: tuple[str, ...]) -> Iterator[Candidate]:
    """FP16, INT8, and INT8 by each of `calibrators`, as resnet-export lowers them."""
    clean = onnx.load(bundle.file("model.onnx"))
    few = images.source.count < FEWEST_IMAGES
    calibration = CalibrationSet(images.source, bundle.manifest.preprocess, as_pixels=False)
    requests = [(HALF, LoweringRequest("fp16")), (OURS, LoweringRequest("int8", allow_few_images=few))]
    requests += [(OTHERWISE, LoweringRequest("int8", calibrator=name, allow_few_images=few)) for name in calibrators]
    for tool, request in requests:

        def make(path: Path, request: LoweringRequest = request) -> None:
            onnx.save(lower(clean, calibration, request, Steps()).model, path)

        yield Candidate(tool, request.calibrator or "", request.precision, "", make)


def others(
    bundle: Bundle, images: Images, tools: tuple[str, ...], pythons: Mapping[str, Path], versions: Mapping[str, str]
) -> Iterator[Candidate]:
    """Everybody else's INT8, by the tools whose package is in `versions`.

    Args:
        pythons, versions: by package, as from `versions_of`.
    """
    for tool in tools:
        package = package_of(tool)
        for variant in VARIANTS[tool] if package in versions else ():

            def make(path: Path, tool: str = tool, variant: str = variant, package: str = package) -> None:
                with tempfile.TemporaryDirectory() as folder:
                    data = Path(folder) / "images.npy"
                    np.save(data, images.calibration)
                    command: list[str | Path] = ["quantize", tool, variant, bundle.file("model.onnx"), data, path]
                    output_of(pythons[package], command, f"{tool}, {variant}")

            yield Candidate(tool, variant, "int8", versions[package], make)


def package_of(tool: str) -> str:
    return PACKAGES[tool.split()[0]]


def versions_of(pythons: Mapping[str, Path]) -> dict[str, str]:
    """The version of each package in its interpreter.

    Raises:
        BackendUnavailable: it is not installed there.
    """
    return {
        package: output_of(python, ["version", package], package).split()[-1] for package, python in pythons.items()
    }


def output_of(python: Path, arguments: list[str | Path], what: str) -> str:
    """What `_quantize_elsewhere.py` prints.

    Raises:
        BackendUnavailable: it failed; with its last words.
    """
    done = subprocess.run(
        [python, QUANTIZE, *arguments], capture_output=True, text=True, check=False, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendUnavailable(f"{what}: {last}; expected an interpreter that has it, see scripts/accuracy.py --help")
    return done.stdout


def measure(candidate: Candidate, images: Images, kept: Path, digest: str) -> Measured:
    """Make a candidate and run it, or take what an earlier run kept of it: others' tools do not change as ours does.

    Args:
        kept: a folder for that.
        digest: of the network and the images.
    """
    key = hashlib.sha256("|".join((digest, candidate.tool, candidate.variant, candidate.version)).encode()).hexdigest()
    path, outputs = kept / f"{key[:20]}.onnx", kept / f"{key[:20]}.npz"
    if not candidate.version or not outputs.exists():
        kept.mkdir(parents=True, exist_ok=True)
        candidate.make(path)
        answers = answers_of(onnx.load(path), candidate.precision, images.test)
        np.savez(outputs, exact=answers.exact, plain=answers.plain)
    with np.load(outputs) as found:
        answers = Answers(found["exact"], found["plain"])
    return Measured(answers, path.stat().st_size, refusal(onnx.load(path)))


def refusal(model: onnx.ModelProto) -> str:
    """Why TensorRT refuses a graph, by the linter's rules (measured on TensorRT-RTX); empty if it takes it."""
    report = lint(model)
    findings = () if report is None else report.findings
    return next((one.message for one in findings if one.kind == "refused"), "")


def digest_of(bundle: Bundle, images: Images) -> str:
    """Of the network, the images that it is calibrated on and those that it is judged on."""
    digest = hashlib.sha256(bundle.file("model.onnx").read_bytes())
    for array in (images.calibration, images.test):
        digest.update(array.data)
    return digest.hexdigest()


def default_pythons() -> dict[str, Path]:
    """onnxruntime is in this interpreter."""
    return {PACKAGES["onnxruntime"]: Path(sys.executable)}
