"""`resnet-deploy`: use a bundle where it will run. Needs neither torch nor onnx for a bundle on a device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._build import build, engine_lines
from exporter.cli._check import check
from exporter.cli._common import accuracy_line, echo_json, gives_text, parity_lines, run_command, size_text
from exporter.cli._eval import evaluate
from runtimes._plugins import needed_for
from runtimes.errors import BadInput

if TYPE_CHECKING:
    from exporter.qdq.lint import BlockReport, QdqReport
    from runtimes.manifest import GraphFacts, Manifest

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
EPILOG = """\b
Exit codes: 0 done and within budget, 1 failed, 2 asked for wrongly,
            3 something is not here, 4 out of the parity budget, or less accurate
            than --min-top1."""


@click.group(epilog=EPILOG)
@click.version_option(package_name="resnet-export")
def command() -> None:
    """Look into, build and run the bundles that resnet-export writes."""


def main() -> None:
    """Entry point of `resnet-deploy`."""
    run_command(command)


command.add_command(build)
command.add_command(check)
command.add_command(evaluate)


@command.command()
@click.argument("path", metavar="BUNDLE|ONNX|ENGINE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle, an ONNX file or an engine holds: operators, types, parameters, work, size, and what was proven."""
    if path.suffix in ENGINE_SUFFIXES:
        return _inspect_engine(path, as_json=as_json)
    if path.is_file():
        return _inspect_onnx(path, as_json=as_json)
    from runtimes import Bundle

    manifest = Bundle.open(path).manifest
    if as_json:
        import msgspec

        return echo_json({"bundle": str(path), **msgspec.to_builtins(manifest)})
    click.echo("\n".join(_bundle_lines(path, manifest)))


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Classes to show for each picture.")
@click.option("--backend", default="onnxruntime", show_default=True, help="What runs the model.")
@click.option("--provider", help="Where it runs: cpu or cuda.  [default: the backend's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def run(bundle: Path, images: tuple[Path, ...], top: int, backend: str, provider: str | None, as_json: bool) -> None:
    """Classify pictures: the most likely classes of each IMAGE."""
    from runtimes import Bundle, open_runtime
    from runtimes.classify import check_classifier, classify
    from runtimes.picture_file import open_picture

    opened = Bundle.open(bundle)
    check_classifier(opened.manifest.outputs)
    for path in images:
        if not path.exists():  # told before the model is loaded; the pictures themselves are read one by one
            raise BadInput(f"cannot read the picture {path}: there is no such file")
    with open_runtime(opened, backend, provider=provider) as runtime:
        found = classify(runtime, opened.manifest.preprocess, map(open_picture, images), labels=opened.labels, top=top)
    if as_json:
        return echo_json({str(path): [asdict(one) for one in predictions] for path, predictions in zip(images, found, strict=True)})
    for path, predictions in zip(images, found, strict=True):
        click.echo(str(path))
        for one in predictions:
            click.echo(f"  {one.probability:>7.2%}  {one.label}")


def _inspect_engine(path: Path, *, as_json: bool) -> None:
    import msgspec

    from runtimes.engine import facts_of

    facts = facts_of(path)
    if as_json:
        return echo_json({"file": str(path), **msgspec.to_builtins(facts)})
    click.echo("\n".join(engine_lines(path, facts)))


def _inspect_onnx(path: Path, *, as_json: bool) -> None:
    with needed_for("inspecting an ONNX file", "pip install 'resnet-export[export]'"):
        import onnx

        from exporter.graph import graph_facts
        from exporter.qdq.lint import lint
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own kinds, which share no base
        raise BadInput(f"{path} is no ONNX model: {str(error).splitlines()[0]}") from error
    facts, report = graph_facts(model), lint(model)
    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if as_json:
        return echo_json(
            {
                "file": str(path),
                "bytes": path.stat().st_size,
                "ir_version": model.ir_version,
                "opset": opset,
                "graph": asdict(facts),
                "qdq": asdict(report) if report else None,
            }
        )
    opsets = ", ".join(f"{domain} {number}" for domain, number in opset.items())
    click.echo(f"{'file':<12} {path}, {size_text(path.stat().st_size)}\n{'format':<12} IR {model.ir_version}, opset {opsets}")
    click.echo("\n".join([*_graph_lines(facts), *(_qdq_lines(report) if report else [])]))


def _qdq_lines(report: QdqReport) -> list[str]:
    """The verdict, a line for each block, and under it what keeps it from fusing."""
    verdict = "TensorRT refuses this graph" if report.refused else "TensorRT takes this graph"
    (quantized, convolutions), (shortcuts, additions) = report.convolutions, report.shortcuts
    lines = [f"{'quantized':<12} {quantized} of {convolutions} convolutions, {shortcuts} of {additions} residual shortcuts; {verdict}"]
    for block in report.blocks:
        parts = [f"{block.convolutions[0]} of {block.convolutions[1]} convolutions INT8"] if block.convolutions[1] else ["no convolution"]
        if block.shortcut is not None:
            parts.append(f"shortcut {'INT8' if block.shortcut else 'float'}")
        parts.append(_verdict(block))
        lines.append(f"{'':<12} {block.name:<20} {', '.join(parts)}")
        lines += [f"{'':<15}{finding.kind}: {finding.node}: {finding.message}" for finding in block.findings]
    return lines


def _verdict(block: BlockReport) -> str:
    if any(finding.kind != "left in float" for finding in block.findings):
        return "not as it should be:"
    if not block.convolutions[0]:
        return "in float"
    return "fuses, but for:" if block.findings else "fuses"


def _bundle_lines(path: Path, manifest: Manifest) -> list[str]:
    model = manifest.model
    lines = [
        f"{'bundle':<12} {path}",
        f"{'model':<12} {model.name} ({model.source}, {model.variant}), {gives_text(manifest)}",
        f"{'weights':<12} {model.weights.kind}, sha256 {model.weights.sha256}",
        f"{'precision':<12} {manifest.precision} for {manifest.target}, opset {manifest.opset}, batch {manifest.batch}",
    ]
    for kind, values in (("input", manifest.inputs), ("output", manifest.outputs)):
        lines += [f"{kind:<12} {value.name} {value.dtype} {'x'.join(map(str, value.shape))}" for value in values]
    steps = manifest.preprocess
    lines.append(
        f"{'preprocess':<12} resize {steps.resize} ({steps.interpolation}), crop {steps.crop[0]}x{steps.crop[1]},"
        f" mean {_numbers(steps.mean)}, std {_numbers(steps.std)}"
    )
    lines += _graph_lines(manifest.graph)
    lines += parity_lines(manifest.parity)
    if manifest.accuracy is not None:
        lines.append(accuracy_line(manifest.accuracy))
    lines.append(f"{'files':<12} {', '.join(f'{name} {size_text(facts.bytes)}' for name, facts in manifest.files.items())}")
    return [*lines, f"{'versions':<12} {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}"]


def _graph_lines(facts: GraphFacts) -> list[str]:
    lines = [f"{'graph':<12} {facts.nodes} nodes, {facts.parameters / 1e6:.2f} M parameters, {facts.macs / 1e9:.3f} GMACs an image"]
    for operator, count in facts.operators.items():
        types = ", ".join(f"{number} {name}" for name, number in facts.types[operator].items())
        lines.append(f"{'':<12} {operator:<20} {count:>4}  {types}")
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
