"""`resnet-deploy build`: an engine from a bundle, on the device that will run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._common import echo_json, echo_lines, size_text, status
from exporter.verification.report.lines import parity_lines

if TYPE_CHECKING:
    from exporter.engines.build import Engine
    from runtimes.nvidia.engine_file import EngineFacts

MIB = 1 << 20
BACKENDS = ("tensorrt", "tensorrt-rtx")
LEVELS = ("ampere-plus", "same-compute-capability")


trust_option = click.option(
    "--trust-engine",
    "trust_engines",
    multiple=True,
    metavar="SHA256",
    help="Load this engine, though another machine built it. Engines are code.",
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="tensorrt",
    show_default=True,
    help="What builds, and will run, the engine.",
)
@click.option(
    "--target",
    "targets",
    metavar="SM,...",
    help="GPUs to build for, as sm86,sm120: tensorrt-rtx alone, on any machine.",
)
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Most scratch memory a kernel may use.")
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="N",
    help="0 builds fast, 5 runs fast.  [default: the library's, 3]",
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the builder's measurements in FILE.VERSION-GPU.",
)
@click.option(
    "--dla",
    "dla_core",
    type=click.IntRange(min=0),
    metavar="N",
    help="Run on this DLA core; what is no convolution may go to the GPU; static batch.",
)
@click.option("--hardware-compatible", type=click.Choice(LEVELS), help="Also for other GPUs, at some cost in speed.")
@click.option("--version-compatible", is_flag=True, help="Also for newer versions of the library.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights in the bundle's ONNX; not with int8.")
@click.option(
    "--allow-fallback-layers",
    is_flag=True,
    help="Accept convolutions in another precision than promised, or off the DLA.",
)
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def build(
    bundle: Path,
    backend: str,
    as_json: bool,
    quiet: bool,
    force: bool,
    allow_fallback_layers: bool,
    timing_cache: Path | None,
    **options: object,
) -> None:
    """Build an engine from BUNDLE into its engines/, prove its precision layer by layer and, where a GPU is, its answers."""
    from exporter.engines.build import BuildPlan, build_engine
    from exporter.engines.builders._network import BuildOptions
    from runtimes.bundle import Bundle

    targets, workspace = options.pop("targets"), options.pop("workspace")
    chosen = BuildOptions(
        targets=tuple(str(targets).lower().split(",")) if targets else (),
        workspace_bytes=workspace * MIB if isinstance(workspace, int) else None,
        **options,  # type: ignore[arg-type]  # click has checked them
    )
    plan = BuildPlan(Bundle.open(bundle), backend, chosen, allow_fallback_layers, timing_cache, force)
    with status(quiet=quiet) as say:
        engine = build_engine(plan, say)
    if as_json:
        import msgspec

        report = msgspec.to_builtins(engine.report)
        return echo_json(
            {"engine": str(engine.path), "cached": engine.cached, "parity": report, **msgspec.to_builtins(engine.facts)}
        )
    echo_lines([*engine_lines(engine.path, engine.facts), *_proof_lines(engine)])


def _proof_lines(engine: Engine) -> list[str]:
    if engine.cached:
        return [f"{'built':<12} before, and nothing has changed since; --force builds again"]
    if engine.report is None:
        return [f"{'answers':<12} not checked: the engine was built ahead of time, for a device that is not here"]
    return parity_lines(engine.report)


def engine_lines(path: Path, facts: EngineFacts) -> list[str]:
    """What a sidecar says, as lines of text."""
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
    if facts.layers.on_gpu:
        lines.append(f"{'':<12} on the GPU and not on DLA: {', '.join(facts.layers.on_gpu)}")
    if facts.options:
        lines.append(f"{'options':<12} {', '.join(f'{name} {value}' for name, value in facts.options.items())}")
    return [*lines, f"{'seconds':<12} {facts.seconds:.1f}"]
