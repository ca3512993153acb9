"""`resnet-deploy inspect`: show what a bundle, an ONNX file or an engine holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._build import engine_lines
from exporter.cli._common import echo_json, echo_lines, gives_text, size_text
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._lint import Linted, LintOptions, check_strict, closing_lines, finding_line, linted
from exporter.cli._options import json_option, output_group
from exporter.verification.report.lines import accuracy_line, parity_lines
from runtimes._plugins import needed_for
from runtimes.errors import PlanError, ResnetExportError
from runtimes.printable import printable

if TYPE_CHECKING:
    import onnx

    from exporter.lowering.qdq.lint import BlockReport, QdqReport
    from runtimes.manifest import GraphFacts, Manifest

ONNX = "model.onnx"
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
ELSEWHERE = "other values in onnxruntime"
FUSES_ANYWAY = ("left in float", ELSEWHERE)
"""The findings that keep TensorRT from fusing nothing."""


EPILOG = """\b
Examples:
  resnet-deploy inspect model.onnx
  resnet-deploy inspect model.onnx --target-trt 10.3 --strict
  resnet-deploy inspect model.onnx --build    # ask TensorRT-RTX's own builder

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something needed is missing,
            4 errors or warnings, with --strict."""

_rules = option_group("Rules, for ONNX files")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("path", metavar="BUNDLE|ONNX|ENGINE", type=click.Path(path_type=Path))
@_rules(
    "--target",
    metavar="NAME",
    help="Judge for tensorrt or cpu.  [default: what the file was exported for, or tensorrt]",
)
@_rules(
    "--target-trt",
    metavar="VERSION",
    help="Judge for this TensorRT: 10.3, 10.16, 11.4 or rtx.  [default: what all of them take]",
)
@_rules("--dla", is_flag=True, help="Judge what a Jetson's DLA runs, too.")
@_rules("--build", is_flag=True, help="Parse and build with TensorRT-RTX, too, which needs no GPU.")
@_rules("--strict", is_flag=True, help="Exit with 4 if there are errors or warnings.")
@output_group("--github", is_flag=True, help="In a GitHub workflow: write a job summary, and annotate each finding.")
@json_option
def inspect(path: Path, as_json: bool, **options: Any) -> None:
    """Show what a bundle, an ONNX file or an engine holds.

    Operators, types, parameters, multiply-accumulates and sizes; of a bundle also what was proven, of an ONNX file
    whether TensorRT takes it, rule by rule, of an engine whether this machine trusts it.
    """
    asked = LintOptions(**options)
    if asked.given and (path.suffix in ENGINE_SUFFIXES or not path.is_file()):
        instead = f"give {path / ONNX}" if (path / ONNX).is_file() else "leave it out"
        raise PlanError(f"{asked.given[0]} is for ONNX files, and {path} is none; {instead}")
    if path.suffix in ENGINE_SUFFIXES:
        return _inspect_engine(path, as_json=as_json)
    if path.is_file():
        return _inspect_onnx(path, asked, as_json=as_json)
    from runtimes import Bundle

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if as_json:
        import msgspec

        return echo_json({"bundle": str(path), **msgspec.to_builtins(manifest)})
    echo_lines(_bundle_lines(path, manifest, bundle.rejection))


def _inspect_engine(path: Path, *, as_json: bool) -> None:
    import msgspec

    from runtimes.nvidia.engine_file import facts_of, sidecar_document
    from runtimes.nvidia.plan_files import sidecar_of
    from runtimes.nvidia.trust import check_trusted

    facts = facts_of(path)
    problem = ""
    try:
        check_trusted(sidecar_document(sidecar_of(path)), str(path), ())
    except ResnetExportError as error:
        problem = str(error)
    if as_json:
        return echo_json({"file": str(path), "built_here": not problem, **msgspec.to_builtins(facts)})
    whose = (f"{'sha256':<12} {facts.engine_sha256}", f"{'trust':<12} {problem or 'built on this machine'}")
    echo_lines([*engine_lines(path, facts), *whose])


def _inspect_onnx(path: Path, options: LintOptions, *, as_json: bool) -> None:
    from exporter.verification.report.github import summary_file

    summary = summary_file() if options.github else None
    with needed_for("inspecting an ONNX file", "pip install 'resnet-export[export]'"):
        from exporter.graph.counts import graph_facts
        from exporter.graph.onnx_file import model_from_file
    model = model_from_file(path)
    done, facts = linted(path, model, options), graph_facts(model)
    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if as_json:
        about = {"file": str(path), "bytes": path.stat().st_size, "ir_version": model.ir_version, "opset": opset}
        echo_json({**about, "graph": asdict(facts), **done.record()})
    else:
        opsets = ", ".join(f"{domain} {number}" for domain, number in opset.items())
        lines = [
            f"{'file':<12} {path}, {size_text(path.stat().st_size)}",
            f"{'format':<12} IR {model.ir_version}, opset {opsets}",
            *_interface_lines(model.graph),
        ]
        echo_lines([*lines, *_graph_lines(facts), *_lint_lines(done)])
    if summary is not None:
        _annotate(path, done, summary, err=as_json)
    if options.strict:
        check_strict(done)


def _interface_lines(graph: onnx.GraphProto) -> list[str]:
    """What a graph is fed, and what it gives; a size that the file leaves open is its name, or `?`."""
    from exporter.graph.facts import type_name

    weights = {tensor.name for tensor in graph.initializer}  # files of old list them as inputs, too
    fed = [value for value in graph.input if value.name not in weights]
    lines = []
    for kind, values in (("input", fed), ("output", graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sizes = [
                str(one.dim_value) if one.HasField("dim_value") and one.dim_value >= 0 else one.dim_param or "?"
                for one in tensor.shape.dim
            ]
            shape = ("x".join(sizes) or "of one number") if tensor.HasField("shape") else "of unknown shape"
            lines.append(f"{kind:<12} {value.name} {type_name(tensor.elem_type)} {shape}")
    return lines


def _annotate(path: Path, done: Linted, summary: Path, *, err: bool) -> None:
    """Write the job summary and the annotations; a runner reads its commands from both streams."""
    from exporter.verification.report.github import finding_lines, markdown_from_findings, write_summary

    write_summary(summary, markdown_from_findings(path, done.report))
    lines = finding_lines(path, done.report.findings)
    click.echo("".join(f"{printable(line)}\n" for line in lines), nl=False, err=err)


def _lint_lines(done: Linted) -> list[str]:
    lines = _qdq_lines(done.report.qdq, done) if done.report.qdq else []
    for place, one in enumerate(done.report.others):
        where = f" (in {one.block})" if one.block else ""
        lines.append(f"{'' if place else 'findings':<12} {finding_line(one.finding)}{where}")
    return [*lines, *closing_lines(done)]


def _qdq_lines(report: QdqReport, done: Linted) -> list[str]:
    """What runs in INT8, and a line for each block with what keeps it from that below it."""
    (quantized, convolutions), (shortcuts, additions) = report.convolutions, report.shortcuts
    counts = f"{quantized} of {convolutions} convolutions, {shortcuts} of {additions} "
    if done.on_processor:
        counts += "additions; for processors"
        second, verdict = ("addition", {True: "INT8", False: "float"}), _processor_verdict
    else:
        counts += f"residual shortcuts; {_tensorrt_verdict(report, is_refused=done.report.refused)}"
        second, verdict = ("shortcut", {True: "INT8", False: "float"}), _block_verdict
    lines = [f"{'quantized':<12} {counts}"]
    for block in report.blocks:
        quantized, convolutions = block.convolutions
        parts = [f"{quantized} of {convolutions} convolutions INT8" if convolutions else "no convolution"]
        if block.shortcut is not None:
            parts.append(f"{second[0]} {second[1][block.shortcut]}")
        parts.append(verdict(block))
        lines.append(f"{'':<12} {block.name:<20} {', '.join(parts)}")
        lines += [f"{'':<15}{finding_line(one)}" for one in block.findings]
    return lines


def _processor_verdict(block: BlockReport) -> str:
    if block.findings:
        return "not all of it on integers:" if any(one.kind == "runs in float" for one in block.findings) else "but:"
    return "on integers" if block.convolutions.total else "in float"


def _tensorrt_verdict(report: QdqReport, *, is_refused: bool) -> str:
    """Whether TensorRT takes a graph."""
    verdict = "TensorRT takes this graph"
    if is_refused:
        verdict = "TensorRT refuses this graph"
    elif report.unknown:
        verdict = "whether TensorRT takes this graph as it is meant is unknown"
    elif any(finding.kind == "other values" for finding in report.findings):
        verdict = "TensorRT takes this graph, and computes other values than it says"
    if any(finding.kind == ELSEWHERE for finding in report.findings):
        verdict += "; a plain session of onnxruntime computes other values"
    return verdict


def _block_verdict(block: BlockReport) -> str:
    if any(finding.kind not in FUSES_ANYWAY for finding in block.findings):
        return "not as it should be:"
    if not block.convolutions[0]:
        return "in float"
    return "fuses, but for:" if block.findings else "fuses"


def _bundle_lines(path: Path, manifest: Manifest, rejection: str) -> list[str]:
    model = manifest.model
    lines = [
        f"{'bundle':<12} {path}",
        f"{'model':<12} {model.name} ({manifest.origin_text}), {gives_text(manifest)}",
        f"{'weights':<12} {model.weights.kind}, sha256 {model.weights.sha256}",
        f"{'precision':<12} {manifest.precision} for {manifest.target}, opset {manifest.opset}, batch {manifest.batch}",
    ]
    for kind, values in (("input", manifest.inputs), ("output", manifest.outputs)):
        lines += [f"{kind:<12} {value.name} {value.dtype} {'x'.join(map(str, value.shape))}" for value in values]
    taken = () if manifest.source_file is None else manifest.source_file.steps
    lines += [f"{'' if place else 'taken in':<12} {said}" for place, said in enumerate(taken)]
    steps = manifest.preprocess
    lines.append(
        f"{'preprocess':<12} resize {steps.resize} ({steps.interpolation}), crop {steps.crop[0]}x{steps.crop[1]},"
        f" mean {_numbers(steps.mean)}, std {_numbers(steps.std)}"
        + (", taken in the order B, G, R" if steps.channels_order == "bgr" else "")
    )
    lines += _graph_lines(manifest.graph)
    lines += parity_lines(manifest.parity)
    if rejection:
        lines.append(f"{'rejected':<12} by its export, and kept as evidence: {rejection}")
    if manifest.accuracy is not None:
        lines.append(accuracy_line(manifest.accuracy))
    lines.append(
        f"{'files':<12} {', '.join(f'{name} {size_text(facts.bytes)}' for name, facts in manifest.files.items())}"
    )
    return [*lines, f"{'versions':<12} {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}"]


def _graph_lines(facts: GraphFacts) -> list[str]:
    lines = [f"{'graph':<12} {facts.nodes} nodes, {_count(facts.parameters)} parameters, {_work(facts.macs)}"]
    for operator, count in facts.operators.items():
        types = ", ".join(f"{number} {name}" for name, number in facts.types.get(operator, {}).items())
        lines.append(f"{'':<12} {operator:<20} {count:>4}  {types}")
    return lines


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 10_000 else str(number)


def _work(macs: int | None) -> str:
    if macs is None:
        return "unknown GMACs (of free sizes, or of operators that are not counted)"
    return f"{macs / 1e9:.3f} GMACs an image" if macs >= 1_000_000 or not macs else f"{macs} MACs an image"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
