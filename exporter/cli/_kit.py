"""`resnet-deploy kit`: pack bundles for a board, with all that it installs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from exporter.cli._common import echo_json, echo_lines, size_text, status
from exporter.cli._files import check_output_files
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import json_option, output_group, quiet_option
from runtimes.errors import PlanError
from runtimes.printable import count_text

EPILOG = """\b
Examples:
  resnet-deploy kit resnet50-fp16 --output kit.tar
  resnet-deploy kit resnet50-* --output kit.tar --wheels linux-aarch64-cp310

\b
Then:
  scp kit.tar board:
  ssh board 'tar xf kit.tar && resnet-kit/install.sh'"""

_board = option_group("Board")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_board(
    "--wheels",
    metavar="PLATFORM",
    help="Pack the packages that it installs, too, so that it needs no network: linux-aarch64-cp310 for JetPack 6,"
    " linux-aarch64-cp312 for JetPack 7, linux-x86_64-cp3NN for a PC or server.",
)
@_board(
    "--jetpack", metavar="VERSION", help="The board's JetPack, such as 6.2.  [default: any that builds the bundles]"
)
@_board("--engines", is_flag=True, help="Pack engines that were built on such a board, too.")
@output_group(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The kit, a tar file.",
)
@output_group("--force", is_flag=True, help="Replace a file that is there.")
@json_option
@quiet_option
def kit(bundles: tuple[Path, ...], **options: Any) -> None:
    """Pack each BUNDLE for a Jetson, in one tar file; with --wheels linux-x86_64-..., for another machine.

    It holds the bundles without their FP32 reference, this package, a script that installs it beside the machine's own
    TensorRT, and a README with the commands. The same bundles give the same bytes.
    """
    output: Path = options["output"]
    check_output_files({"--output": output}, bundles)
    if output.exists() and not options["force"]:
        raise PlanError(f"{output} exists; give --force to replace it, or another --output")
    from exporter.deployment.jetson.base_wheels import WheelPlatform
    from exporter.deployment.jetson.kit import KitPlan, write_kit
    from runtimes.bundle import Bundle

    platform = None if options["wheels"] is None else WheelPlatform.from_text(options["wheels"])
    opened = tuple(map(Bundle.open, bundles))
    plan = KitPlan(opened, output, platform, options["jetpack"], engines=options["engines"])
    with status(quiet=options["quiet"]) as progress:
        made = write_kit(plan, progress)
    if options["as_json"]:
        return echo_json({**asdict(made), "path": str(made.path)})
    jetpacks = f"JetPack {', '.join(made.jetpacks)}" if made.jetpacks else str(platform)
    packages = (
        f"{count_text(len(made.wheels), 'package')} for {platform}: no network is needed there"
        if platform
        else "none: the board takes them from its network; --wheels packs them"
    )
    echo_lines(
        [
            f"{'kit':<12} {made.path}, {size_text(made.bytes)}",
            f"{'sha256':<12} {made.sha256}",
            f"{'for':<12} {jetpacks}",
            f"{'bundles':<12} {', '.join(made.bundles)}",
            *([f"{'engines':<12} {', '.join(made.engines)}"] if made.engines else []),
            f"{'packages':<12} {packages}",
        ]
    )
