"""The build of a bundle as command lines of trtexec, which every TensorRT brings along. Needs no TensorRT."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from exporter.engines.build import NEWEST_OPSETS, BuildPlan
from runtimes.board.dla import dla_refusal
from runtimes.board.memory import MIB
from runtimes.bundle import ONNX
from runtimes.errors import PlanError
from runtimes.preprocess import takes_any_size
from runtimes.specs import PICTURE_SIDES

LEVELS = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}
CONTINUED, INDENT = " \\", "    "


@dataclass(frozen=True)
class _Generation:
    """The versions of trtexec that take the same options.

    Attributes:
        with_dla: the version of those whose TensorRT runs on DLA.
        dla_versions: all of them.
    """

    name: str
    versions: str
    flags: tuple[str, ...]
    with_dla: str
    dla_versions: str


GENERATIONS = (
    _Generation("10", "10.3 to 10.16", ("--stronglyTyped",), "10.7.0", "10.3 to 10.7"),
    _Generation("11", "11", (), "11.4.1", "11.4.1 and newer"),
)
"""Networks of TensorRT 11 are always strongly typed; there `--stronglyTyped` does nothing."""


def trtexec_lines(plan: BuildPlan) -> list[str]:
    """The same build for trtexec of TensorRT 10.3 to 10.16 and of 11: lines for a POSIX shell, with comments.

    Raises:
        PlanError: the plan is for TensorRT-RTX, or for a GPU that is not the machine's own.
        BundleError: the bundle has no graph.
    """
    _check(plan)
    lines = [
        "# Engines of trtexec run in other programs; resnet-deploy loads only those",
        "# that it built and proved itself. Never add --fp16 or --int8: the precision",
        "# is in the graph. JetPack has the tool in /usr/src/tensorrt/bin.",
    ]
    if plan.options.workspace_bytes is None:
        lines += [
            "# On a board, resnet-deploy build limits scratch memory by the board's own,",
            "# and these lines do not: repeat this command with --workspace MIB.",
        ]
    for generation in GENERATIONS:
        lines += ["", f"# TensorRT {_versions(plan, generation)}", *_of_generation(plan, generation)]
    return lines


def trtexec_commands(plan: BuildPlan) -> list[dict[str, object]]:
    """The same build as words, for each generation of trtexec: `tensorrt`, its versions; `command`, the words, or
    None where it cannot build this; `notes`, a sentence each.

    Raises:
        PlanError, BundleError: as `trtexec_lines`.
    """
    _check(plan)
    commands: list[dict[str, object]] = []
    for generation in GENERATIONS:
        refusal = _refusal(plan, generation)
        notes = [refusal] if refusal else list(_notes(plan, generation))
        command = None if refusal else ["trtexec", *_words(plan, generation)]
        commands.append({"tensorrt": _versions(plan, generation), "command": command, "notes": notes})
    return commands


def _check(plan: BuildPlan) -> None:
    plan.bundle.file(ONNX)
    if plan.backend != "tensorrt":
        raise PlanError(
            f"--print-trtexec is about TensorRT's own tool, and trtexec builds nothing for {plan.backend}; leave out "
            "--backend"
        )
    if plan.options.targets:
        raise PlanError("trtexec builds for the GPU of the machine that it runs on; leave out --target")


def _versions(plan: BuildPlan, generation: _Generation) -> str:
    return generation.versions if plan.options.dla_core is None else generation.dla_versions


def _refusal(plan: BuildPlan, generation: _Generation) -> str:
    if plan.options.dla_core is None:
        return ""
    return dla_refusal(generation.with_dla, "", plan.bundle.manifest.precision)


def _of_generation(plan: BuildPlan, generation: _Generation) -> Iterator[str]:
    if refusal := _refusal(plan, generation):
        yield f"# none: {refusal}"
        return
    yield from (f"# {note}" for note in _notes(plan, generation))
    *words, last_word = map(shlex.quote, _words(plan, generation))
    yield f"trtexec{CONTINUED}"
    yield from (f"{INDENT}{word}{CONTINUED}" for word in words)
    yield f"{INDENT}{last_word}"


def _notes(plan: BuildPlan, generation: _Generation) -> Iterator[str]:
    options, manifest = plan.options, plan.bundle.manifest
    if options.dla_core is not None:
        yield f"on DLA: {'AGX Orin, Orin NX' if generation.name == '10' else 'AGX Orin'}"
    (last, newest) = NEWEST_OPSETS["tensorrt"]
    if manifest.opset > newest and generation.name == str(last[0]):
        yield f"not {'.'.join(map(str, last))}, which reads no opset above {newest}; this graph has {manifest.opset}"
    if options.hardware_compatible == "same-compute-capability" and generation.name == "10":
        yield "from 10.13 on: earlier ones do not know sameComputeCapability"


def _words(plan: BuildPlan, generation: _Generation) -> list[str]:
    options, manifest = plan.options, plan.bundle.manifest
    words = [f"--onnx={plan.bundle.folder / ONNX}", *generation.flags, *_shapes(plan)]
    name = manifest.name.replace("/", "-")  # no folder
    words.append(f"--saveEngine={name}-trt{generation.name}.engine")
    if manifest.precision == "fp32":
        words.append("--noTF32")
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes / MIB:.15g}")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatible is not None:
        words.append(f"--hardwareCompatibilityLevel={LEVELS[options.hardware_compatible]}")
    if options.strip_weights:
        words.append("--stripWeights")
    if options.dla_core is not None:
        words += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
    if plan.timing_cache is not None:  # a file for each: a cache of another version is of no use
        words.append(f"--timingCacheFile={plan.timing_cache}.trtexec-{generation.name}")
    return [*words, "--profilingVerbosity=detailed", "--skipInference"]


def _shapes(plan: BuildPlan) -> list[str]:
    """The profile's shapes; none for a graph of fixed sizes, for which trtexec refuses them."""
    manifest = plan.bundle.manifest
    if manifest.batch.is_static and not any(map(takes_any_size, manifest.inputs)):
        return []
    batch = manifest.batch
    rows = {"min": batch.min, "opt": batch.opt, "max": batch.max}
    words = []
    for (name, count), side in zip(rows.items(), PICTURE_SIDES, strict=True):
        shapes = (
            f"{spec.name}:"
            + "x".join(str(side if isinstance(size, str) else size) for size in (count, *spec.shape[1:]))
            for spec in manifest.inputs
        )
        words.append(f"--{name}Shapes={','.join(shapes)}")
    return words
