"""`resnet-deploy build`: build an engine from a bundle, on the device that will run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._build_on import build_on, is_on_board, on_options
from exporter.cli._common import echo_json, echo_lines, size_text, status, warn_of_power
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import json_option, output_group, quiet_option
from exporter.verification.report.lines import parity_lines

if TYPE_CHECKING:
    from exporter.engines.build import Engine
    from runtimes.nvidia.engine_file import EngineFacts

MIB = 1 << 20
BACKENDS = ("tensorrt", "tensorrt-rtx")
LEVELS = ("ampere-plus", "same-compute-capability")


_device, _builder = map(option_group, ("Device", "Builder"))


@click.command(cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@_device(
    "--backend",
    type=click.Choice(BACKENDS),
    default="tensorrt",
    show_default=True,
    help="Library that builds the engine and will run it.",
)
@_device(
    "--target",
    "targets",
    metavar="SM,...",
    help="GPUs to build for, such as sm86,sm120, on any machine; tensorrt-rtx only.  [default: all that tensorrt-rtx"
    " has; tensorrt builds for this machine's GPU]",
)
@_device(
    "--dla",
    "dla_core",
    type=click.IntRange(min=0),
    metavar="N",
    help="Run on this DLA core; what DLA does not have runs on the GPU, but no convolution may. Needs one batch size;"
    " resnet-export --dla-friendly leaves least to the GPU.",
)
@_device("--version-compatible", is_flag=True, help="Let newer versions of the library load the engine.")
@_device(
    "--hardware-compatible",
    type=click.Choice(LEVELS),
    metavar="LEVEL",
    help=f"Let other GPUs load the engine, at some cost in speed: {' or '.join(LEVELS)}.",
)
@_builder(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="N",
    help="From 0, which builds fast, to 5, which runs fast.  [default: the library's, 3]",
)
@_builder(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Largest scratch memory of a kernel, in MiB.  [default: the library's own; on a Jetson by its memory]",
)
@_builder(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the builder's timings for later builds, in FILE.VERSION-GPU.",
)
@_builder("--strip-weights", is_flag=True, help="Leave the weights in the bundle's ONNX file; not with int8.")
@_builder(
    "--allow-fallback-layers",
    is_flag=True,
    help="Accept convolutions in another precision than the bundle's, or off the DLA.",
)
@_builder(
    "--in-process",
    is_flag=True,
    envvar="RESNET_EXPORT_IN_PROCESS",
    show_envvar=True,
    help="Build in this process, as for a debugger, and not in one of its own.",
)
@on_options
@output_group("--force", is_flag=True, help="Build even if nothing has changed.")
@output_group(
    "--print-trtexec",
    is_flag=True,
    help="Print the same build as command lines of trtexec, for TensorRT 10 and 11, and build nothing; needs no"
    " TensorRT.",
)
@json_option
@quiet_option
def build(bundle: Path, **options: Any) -> None:
    """Build an engine from BUNDLE, and prove it.

    The engine is written to the bundle's engines/ folder. Its precision is checked layer by layer and, where its GPU
    is, its outputs against the bundle's golden ones.
    """
    from exporter.engines.build import BuildPlan, build_engine
    from exporter.engines.builders import BuildOptions
    from runtimes.bundle import Bundle

    on_board = is_on_board(options)
    targets, workspace = options["targets"], options["workspace"]
    chosen = BuildOptions(
        targets=tuple(targets.lower().split(",")) if targets else (),
        workspace_bytes=workspace * MIB if workspace is not None else None,
        optimization_level=options["optimization_level"],
        version_compatible=options["version_compatible"],
        hardware_compatible=options["hardware_compatible"],
        strip_weights=options["strip_weights"],
        dla_core=options["dla_core"],
    )
    plan = BuildPlan(
        Bundle.open(bundle),
        options["backend"],
        chosen,
        allow_fallback_layers=options["allow_fallback_layers"],
        timing_cache=options["timing_cache"],
        force=options["force"],
        own_process=not options["in_process"],
    )
    if on_board:
        return build_on(plan.bundle, options, engine_lines)
    if options["print_trtexec"]:
        from exporter.engines.trtexec import trtexec_commands, trtexec_lines

        return echo_json({"trtexec": trtexec_commands(plan)}) if options["as_json"] else echo_lines(trtexec_lines(plan))
    with status(quiet=options["quiet"]) as progress:
        engine = build_engine(plan, progress)
    if not engine.cached and not options["quiet"]:
        warn_of_power(engine.facts.power, "the builder timed kernels, to choose among them, on a slower board")
    if options["as_json"]:
        import msgspec

        report = msgspec.to_builtins(engine.report)
        facts = msgspec.to_builtins(engine.facts)
        return echo_json({"engine": str(engine.path), "cached": engine.cached, "parity": report, **facts})
    echo_lines([*engine_lines(engine.path, engine.facts), *_proof_lines(engine)])


def _proof_lines(engine: Engine) -> list[str]:
    if engine.cached:
        return [f"{'built':<12} before, and nothing has changed since; --force builds again"]
    if engine.report is None:
        return [f"{'answers':<12} not checked: the engine was built ahead of time, for a device that is not here"]
    return parity_lines(engine.report)


def workspace_text(facts: EngineFacts) -> str:
    """How much scratch memory the builder's kernels were allowed, and by whom."""
    allowed = None if facts.memory is None else facts.memory.workspace_bytes
    if allowed is None:
        return ""
    chosen = "" if "workspace_bytes" in facts.options else ", by the board's size"
    return f"; {allowed // MIB} MiB of scratch for a kernel{chosen}"


def engine_lines(path: Path, facts: EngineFacts) -> list[str]:
    """What an engine's sidecar file says, as lines of text."""
    device = (
        f"{facts.device.name}, driver {facts.device.driver}" if facts.device else "any of these, built ahead of time"
    )
    convolutions = ", ".join(f"{count} {name}" for name, count in facts.layers.convolutions.items())
    lines = [
        f"{'engine':<12} {path}, {size_text(facts.engine_bytes)}",
        f"{'for':<12} {facts.backend} {facts.version}, {', '.join(facts.targets)} ({device}), {facts.platform}",
        f"{'batch':<12} {facts.batch}",
        f"{'precision':<12} {facts.precision}, {facts.typing} typing; convolutions: {convolutions}",
    ]
    if facts.typed_refusal:
        lines.append(f"{'':<12} the typed graph was refused: {facts.typed_refusal}")
    if facts.layers.fallback:
        lines.append(f"{'':<12} in another precision: {', '.join(facts.layers.fallback)}")
    for kind, types in facts.layers.kernels.items():
        lines.append(f"{'':<12} {kind:<20} {', '.join(f'{count} {name}' for name, count in types.items())}")
    if facts.layers.on_dla:
        among = len(facts.layers.on_dla) + len(facts.layers.on_gpu)
        lines.append(f"{'':<12} on DLA: {len(facts.layers.on_dla)} of {among} layers")
    if facts.layers.on_gpu:
        lines.append(f"{'':<12} on the GPU and not on DLA: {', '.join(facts.layers.on_gpu)}")
    if facts.memory is not None:
        lines.append(f"{'memory':<12} {facts.memory}{workspace_text(facts)}")
    if facts.power is not None:
        lines.append(f"{'power':<12} {facts.power}")
    if facts.options:
        lines.append(f"{'options':<12} {', '.join(f'{name} {value}' for name, value in facts.options.items())}")
    return [*lines, f"{'seconds':<12} {facts.seconds:.1f}"]
