"""The command lines that make a bundle and check it again, as far as its manifest knows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from calibration import FEWEST_IMAGES
from exporter.verification.plan import CheckPlan
from runtimes.manifest import Manifest
from runtimes.parity.budget import number_text
from runtimes.parity.compare import PROBABILITIES, is_classifier
from runtimes.preprocess import BGR, PIXELS, Preprocess, takes_any_size
from runtimes.source_file import DEQUANTIZED

WIDTH = 76


def export_lines(manifest: Manifest) -> tuple[str, ...]:
    """`resnet-export ...`, and in comments the files that it needs and the manifest knows only by their sha256."""
    model, asked = manifest.model, manifest.asked
    outputs = [spec.name for spec in manifest.outputs]
    words = ["resnet-export", model.name, f"--{manifest.precision}", "--target", manifest.target]
    notes = []
    if manifest.source_file is not None:
        words += ["--keep-softmax"] if outputs == [PROBABILITIES] else []
        if manifest.source_file.quantized == DEQUANTIZED:
            words.append("--recalibrate" if manifest.calibration is not None else "--dequantize")
        notes.append(f"# {model.name}: the ONNX file of sha256 {model.weights.sha256}")
    elif model.weights.kind == "file":
        words += ["--weights", "FILE"]
        notes.append(f"# FILE: the checkpoint of sha256 {model.weights.sha256}")
    if model.weights.kind == "random":
        words += ["--weights", "random", *(["--num-classes", str(model.classes)] if is_classifier(outputs) else [])]
        notes.append(f"# the weights are then of sha256 {model.weights.sha256}")
    if model.source == "cifar":
        words += ["--shortcut", model.variant]
    elif model.variant in ("v1", "v1.5"):
        words += ["--variant", model.variant]
    if model.weights.kind not in ("default", "shipped") and "labels.txt" in manifest.files:
        words += ["--labels", "labels.txt"]
    if not is_classifier(outputs) and manifest.source_file is None:
        words += ["--features", "stages" if outputs[0].startswith("layer") else "pool"]
    if manifest.inputs[0].dtype == PIXELS:
        words += ["--uint8-input", *(["full"] if takes_any_size(manifest.inputs[0]) else [])]
    is_told = manifest.source_file is None or not manifest.source_file.normalises
    words += _preprocess_words(manifest.preprocess, is_told=is_told)
    words += ["--dla-friendly"] if asked.dla_friendly else []
    words += ["--batch", str(manifest.batch), "--opset", str(manifest.opset)]
    if manifest.calibration is not None:
        facts = manifest.calibration
        words += ["--calibrator", asked.calibrator] if asked.calibrator else []
        words += ["--calibration-images", str(asked.calibration_images)] if asked.calibration_images else []
        words += ["--allow-few-images"] if facts.images < FEWEST_IMAGES else []
        notes.append(f"# and --data, where the pictures of fingerprint {facts.fingerprint} are not the built-in ones")
    elif manifest.source_file is not None:
        notes.append("# and --data, where it was proven on other pictures than the built-in ones")
    if (mixed := manifest.mixed) is not None:
        words += ["--max-drop" if mixed.wanted == "max_drop" else "--min-agreement", f"{100 * mixed.limit:.10g}"]
    words += ["--seed", str(asked.seed)] if asked.seed else []
    words += ["--proof-images", str(asked.proof_images)] if asked.proof_images is not None else []
    words += _budget_words(asked.budget)
    words += ["--no-reference"] if not {"reference.pt2", "reference.onnx"}.intersection(manifest.files) else []
    return (_command(words), *notes)


def check_line(plan: CheckPlan) -> str:
    """`resnet-deploy check ...`, with the bundle's name for its folder: a path means nothing on another machine."""
    words = ["resnet-deploy", "check", plan.bundle.manifest.name]
    if plan.asked:
        words += [word for backend in plan.backends for word in ("--backend", backend)]
    words += ["--url", plan.url] if plan.url is not None else []
    if plan.data is not None:
        words += ["--data", plan.data, "--images", str(plan.images)]
    words += _budget_words(plan.budget)
    if plan.against is not None:
        words += ["--against", str(plan.against.folder)]
    words += [option for option, given in (("--blocks", plan.blocks), ("--bisect", plan.bisect)) if given]
    return _command(words)


def _preprocess_words(steps: Preprocess, *, is_told: bool) -> list[str]:
    """All steps, whether or not they are the model's own; without --scale, as mean and std are those of 0..1.

    `is_told` is false for a file that normalises pixels itself: then none may be given.
    """
    words = ["--image-size", _size_text(steps.crop)]
    if steps.resize is not None:
        words += ["--resize", _size_text(steps.resize) if isinstance(steps.resize, tuple) else str(steps.resize)]
    words += ["--interpolation", steps.interpolation]
    for option, values in (("--mean", steps.mean), ("--std", steps.std)) if is_told else ():
        words += [option, ",".join(map(number_text, values))]
    return [*words, *(["--channels-order", BGR] if steps.channels_order == BGR else [])]


def _size_text(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _budget_words(limits: Mapping[str, float]) -> list[str]:
    return [word for name, value in limits.items() for word in ("--budget", f"{name}={number_text(value)}")]


def _command(words: Sequence[str]) -> str:
    """Words quoted for a shell, over several lines where they are many; an option stays with its value."""
    lines = [""]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > WIDTH and not (lines[-1].split() or [""])[-1].startswith("--"):
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)
