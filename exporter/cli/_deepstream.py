"""`resnet-deploy deepstream`: DeepStream's configuration of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli._common import echo_json, echo_lines
from exporter.cli._help import GroupedCommand
from exporter.cli._options import json_option, output_group


@click.command(cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@output_group(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write; must be new."
)
@output_group(
    "--engine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Engine of this bundle, built on the machine that will run it, to be copied along.",
)
@output_group(
    "--plugin",
    type=click.Choice(["nvinfer", "nvinferserver"]),
    default="nvinfer",
    show_default=True,
    help="Plug-in to write for; nvinferserver runs a model that takes uint8 in Triton.",
)
@output_group(
    "--trust-engine",
    "trust_engines",
    multiple=True,
    metavar="SHA256",
    help="Copy the engine although another machine built it; an engine is code.",
)
@json_option
def deepstream(bundle: Path, output: Path, **options: Any) -> None:
    """Write DeepStream's configuration of BUNDLE.

    config_infer.txt, labels.txt in DeepStream's form, and the model. Of a bundle that takes uint8 pixels, the model is
    written once more as DIR/bundle, which takes the same pixels as nvinfer feeds them. What DeepStream cannot feed
    exactly is refused.
    """
    from exporter.deployment.deepstream import CONFIG, write_deepstream
    from runtimes.bundle import Bundle
    from runtimes.errors import PlanError
    from runtimes.nvidia.trust import trusted_engines

    engine, trusted = options["engine"], trusted_engines(options["trust_engines"])
    if trusted and engine is None:
        raise PlanError("--trust-engine is about --engine, got none; leave it out, or name the engine")
    files = write_deepstream(Bundle.open(bundle), output, engine, options["plugin"], trusted)
    names = sorted(path.name for path in output.iterdir())
    if options["as_json"]:
        return echo_json({"output": str(output), "plugin": files.plugin, "files": names})
    echo_lines(
        [
            f"{'for':<12} Gst-{files.plugin}, config-file-path={output / CONFIG}",
            f"{'files':<12} {', '.join(names)}",
        ]
    )
