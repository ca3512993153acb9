"""`resnet-deploy`: use a bundle where it will run. Needs neither torch nor onnx for a bundle on a device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from exporter.cli._build import build, trust_option
from exporter.cli._check import check
from exporter.cli._common import echo_json, echo_lines, run_command
from exporter.cli._eval import evaluate
from exporter.cli._inspect import inspect
from runtimes.errors import BadInput

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
command.add_command(inspect)


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Classes to show for each picture.",
)
@click.option("--backend", default="onnxruntime", show_default=True, help="What runs the model.")
@click.option("--provider", help="Where it runs: cpu or cuda.  [default: the backend's]")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def run(
    bundle: Path,
    images: tuple[Path, ...],
    top: int,
    backend: str,
    provider: str | None,
    trust_engines: tuple[str, ...],
    as_json: bool,
) -> None:
    """Classify pictures: the most likely classes of each IMAGE."""
    from runtimes import Bundle, open_runtime
    from runtimes.classify import check_classifier, classify
    from runtimes.picture_file import open_picture

    opened = Bundle.open(bundle)
    check_classifier(opened.manifest.outputs)
    for path in images:
        if not path.exists():  # told before the model is loaded; the pictures themselves are read one by one
            raise BadInput(f"cannot read the picture {path}: there is no such file")
    with open_runtime(opened, backend, provider=provider, trust_engine=trust_engines) as runtime:
        found = classify(runtime, opened.manifest.preprocess, map(open_picture, images), labels=opened.labels, top=top)
    if as_json:
        return echo_json(
            {str(path): [asdict(one) for one in predictions] for path, predictions in zip(images, found, strict=True)}
        )
    for path, predictions in zip(images, found, strict=True):
        echo_lines([str(path), *(f"  {one.probability:>7.2%}  {one.label}" for one in predictions)])
