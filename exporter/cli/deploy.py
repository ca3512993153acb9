"""`resnet-deploy`: use bundles where they run. On a device it needs neither torch nor onnx."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from exporter.cli._bench import bench
from exporter.cli._build import build
from exporter.cli._check import check
from exporter.cli._common import echo_json, echo_lines, run_command, run_program
from exporter.cli._deepstream import deepstream
from exporter.cli._doctor import doctor
from exporter.cli._eval import evaluate
from exporter.cli._help import GroupedCommand
from exporter.cli._inspect import inspect
from exporter.cli._kit import kit
from exporter.cli._options import (
    backend_option,
    json_option,
    output_group,
    provider_option,
    threads_option,
    trust_option,
    url_option,
)
from exporter.cli._triton import triton
from runtimes.errors import BadInput
from runtimes.printable import printable

EPILOG = """\b
Exit codes: 0 done and within budget, 1 failed, 2 wrong usage,
            3 something needed is missing, 4 out of the parity budget,
            undecided, less accurate than --min-top1, or slower than
            --min-speedup."""


@click.group(epilog=EPILOG)
@click.version_option(package_name="resnet-export")
def command() -> None:
    """Inspect, check, build and run the bundles that resnet-export writes."""


def program() -> None:
    """`resnet-deploy` as a process of its own."""
    run_program(main)


def main() -> None:
    """Entry point of `resnet-deploy`."""
    run_command(command)


command.add_command(bench)
command.add_command(build)
command.add_command(check)
command.add_command(deepstream)
command.add_command(doctor)
command.add_command(evaluate)
command.add_command(inspect)
command.add_command(kit)
command.add_command(triton)


@command.command(cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@backend_option
@provider_option
@url_option
@threads_option
@trust_option
@output_group(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Classes to show per image."
)
@json_option
def run(bundle: Path, images: tuple[Path, ...], **options: Any) -> None:
    """Classify each IMAGE.

    Prints its most likely classes, with their probabilities.
    """
    from runtimes import Bundle, open_runtime
    from runtimes.classify import check_classifier, classify
    from runtimes.server_url import place_of

    backend, tuning = options["backend"], options["tuning"]
    provider = place_of(backend, options["provider"], options["url"])
    opened = Bundle.open(bundle)
    check_classifier(opened.manifest.outputs)
    for path in images:
        if not path.exists():  # refused before the model is loaded; the images themselves are read one by one
            raise BadInput(f"cannot read the picture {path}: there is no such file")
    trusted = options["trust_engines"]
    with open_runtime(opened, backend, provider=provider, trust_engine=trusted, tuning=tuning) as runtime:
        if runtime.choice is not None:
            click.echo(f"auto chose {printable(str(runtime.choice))}", err=True)
        found = classify(runtime, opened.manifest.preprocess, images, labels=opened.labels, top=options["top"])
    if options["as_json"]:
        answers = zip(images, found, strict=True)
        return echo_json({str(path): [asdict(one) for one in predictions] for path, predictions in answers})
    for path, predictions in zip(images, found, strict=True):
        echo_lines([str(path), *(f"  {one.probability:>7.2%}  {one.label}" for one in predictions)])


if __name__ == "__main__":
    program()
