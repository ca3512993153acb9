"""`resnet-export`: export a ResNet, by name or from a checkpoint, to a proven bundle."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._common import echo_json, echo_lines, gives_text, run_command, run_program, size_text, status
from exporter.cli._export_options import export_options, plan_from_options
from exporter.cli._help import GroupedCommand
from exporter.cli._options import ray_options
from exporter.models.registry import MODELS
from exporter.pipeline.plan import CROP, FULL, ExportPlan
from runtimes._plugins import needed_for
from runtimes.errors import PlanError

if TYPE_CHECKING:
    from exporter.pipeline.export import Export
    from runtimes.manifest import Manifest

INPUTS = {
    None: "float32, (batch, channels, height, width)",
    CROP: "uint8 pixels, (batch, height, width, channels)",
    FULL: "uint8 pixels, (batch, height, width, channels), pictures of any size",
}
NAMED = 4
"""How many nodes a step of a file's intake names in the summary."""
EPILOG = """\b
Examples:
  resnet-export resnet50 --fp16
  resnet-export resnet18 --weights model.pth --labels names.txt --batch 1:4:16
  resnet-export resnet20 --fp16 --output build/resnet20-fp16 --json
  resnet-export my_package.nets:make_net --image-size 224 --fp16
  resnet-export model.onnx --mean 0.5 --std 0.5 --int8 --data pictures/

\b
Exit codes: 0 done and within budget, 1 failed, 2 wrong usage,
            3 something needed is missing, 4 out of budget or undecided."""


@click.command(cls=GroupedCommand, epilog=EPILOG, no_args_is_help=True)
@click.argument("model", required=False)
@export_options
@ray_options
@click.version_option(package_name="resnet-export")
def command(**options: Any) -> None:
    """Export MODEL to a bundle: an ONNX graph in the precision asked for, and the proof that it agrees with the
    original.

    MODEL is a name from --list, another name of the same pattern (resnext50_16x8d), the path of an ONNX file, or
    package.module:factory, a callable that returns a torch.nn.Module. That module is imported from the current folder
    or the installed packages, which runs its code.
    """
    if options["list_models"]:
        return _list(as_json=options["as_json"])
    plan = plan_from_options(options)
    if options["ray"] is not None and (not plan.lowering_request.is_calibrated or plan.data is None):
        raise PlanError("--ray shares the pictures that INT8 is calibrated on; give --int8 and --data, or leave it out")
    if not options["dry_run"] or os.path.lexists(plan.output):  # a dry run loads numpy for that alone
        from runtimes.bundle_writing import check_destination

        check_destination(plan.output, force=plan.force)  # before the packages are loaded
    if options["dry_run"]:
        return _describe(plan, as_json=options["as_json"])
    with status(quiet=options["quiet"]) as progress:
        start = time.perf_counter()
        progress("load packages")
        # Threads that wait by spinning take the cores from those that work, on a machine that does anything else
        # (measured: 2.5 times the time).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        with needed_for("exporting", "pip install 'resnet-export[export]'"):
            from calibration.distributed.request import executor_of
            from exporter.pipeline.export import export

            if plan.report:
                import exporter.pipeline.report_page  # noqa: F401  # now, and not after the long work
        if plan.spec.source == "custom":
            progress(f"import {plan.model}, which runs its code")
        loading = round(time.perf_counter() - start, 3)
        with executor_of(options["ray"], None) as executor:
            result = export(plan, progress, executor)
    seconds = {"load packages": loading, **result.seconds}
    if options["as_json"]:
        echo_json(_json(result, seconds))
    else:
        echo_lines(_summary(result, seconds))


def program() -> None:
    """`resnet-export` as a process of its own."""
    run_program(main)


def main() -> None:
    """Entry point of `resnet-export`."""
    run_command(command)


def _list(*, as_json: bool) -> None:
    if as_json:
        fields = ("source", "parameters", "macs", "size", "variants")
        return echo_json({name: {field: getattr(spec, field) for field in fields} for name, spec in MODELS.items()})
    click.echo(f"{'model':<18} {'parameters':>12} {'GMACs':>8} {'pixels':>7}  {'source':<12} variants")
    for spec in MODELS.values():
        counts = f"{(spec.parameters or 0) / 1e6:>10.2f} M {(spec.macs or 0) / 1e9:>8.3f}"
        click.echo(f"{spec.name:<18} {counts} {spec.size:>7}  {spec.source:<12} {', '.join(spec.variants)}")


def _describe(plan: ExportPlan, *, as_json: bool) -> None:
    files = ["manifest.json", "model.onnx", *[plan.reference_file] * plan.reference, "golden.npz"]
    files += ["report.html"] * plan.report
    files += ["calibration.json"] * plan.lowering_request.is_calibrated + ["labels.txt"] * (plan.labels is not None)
    facts = {
        "model": plan.model,
        "variant": plan.spec.variant,
        "precision": plan.precision,
        "weights": plan.weights,
        "input": INPUTS[plan.uint8_input],
        "outputs": f"features ({plan.features})" if plan.features else "logits",
        "batch": str(plan.batch),
        "opset": plan.opset,
        "target": plan.target,
        "dla_friendly": plan.dla_friendly,
        "budget": dict(plan.budget),
        "proof_images": plan.proof_images,
        "output": str(plan.output),
        "files": files,
    }
    if as_json:
        return echo_json(facts)
    for key, value in facts.items():
        shown = ", ".join(f"{name}={limit:g}" for name, limit in value.items()) if isinstance(value, dict) else value
        shown = "yes" if shown is True else shown
        if shown:  # what is not asked for is as usual
            click.echo(f"{key:<12} {', '.join(shown) if isinstance(shown, list) else shown}")
    if plan.labels is None and not plan.features:
        click.echo(f"{'':<12} labels.txt, if class names come with the weights")
    click.echo("nothing was written (--dry-run)")


def _json(result: Export, seconds: dict[str, float]) -> dict[str, Any]:
    import msgspec

    facts = {"bundle": str(result.folder), **msgspec.to_builtins(result.manifest)}
    return {**facts, "no_accuracy": result.no_accuracy, "seconds": seconds}


def _summary(result: Export, seconds: dict[str, float]) -> list[str]:
    from exporter.verification.report.block_text import search_lines, worst_text
    from exporter.verification.report.lines import accuracy_line, parity_lines
    from runtimes.parity.budget import RANDOM_WEIGHTS

    manifest = result.manifest
    lines = [
        f"{'bundle':<12} {result.folder}",
        f"{'model':<12} {manifest.model.name}, {manifest.model.weights.kind} weights, {gives_text(manifest)},"
        f" {manifest.precision}, batch {manifest.batch}",
        *_taken_lines(manifest),
        *parity_lines(manifest.parity),
    ]
    if (facts := manifest.calibration) is not None:
        lines.append(
            f"{'calibration':<12} {facts.calibrator}, {facts.images} images, fingerprint {facts.fingerprint[:16]}"
        )
        lines += [f"{'repairs' if not place else '':<12} {said}" for place, said in enumerate(facts.repairs)]
    if manifest.kernels is not None:
        lines.append(f"{'kernels':<12} {manifest.kernels}")
    if manifest.sensitivity is not None:
        lines.append(f"{'sensitivity':<12} {worst_text(manifest.sensitivity)}")
    if manifest.mixed is not None:
        lines += search_lines(manifest.mixed)
    if manifest.accuracy is not None:
        lines.append(accuracy_line(manifest.accuracy))
    elif result.no_accuracy:
        lines.append(f"{'accuracy':<12} not measured: {result.no_accuracy}")
    budget = manifest.parity.budget
    if manifest.model.weights.kind == "random" and budget == budget.errors_alone():
        lines.append(f"{'':<12} {RANDOM_WEIGHTS}")
    sizes = ", ".join(f"{name} {size_text(file.bytes)}" for name, file in manifest.files.items())
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return [*lines, f"{'size':<12} {sizes}", f"{'seconds':<12} {sum(seconds.values()):.1f}: {steps}"]


def _taken_lines(manifest: Manifest) -> list[str]:
    """What was done to an ONNX file, a line for each step."""
    steps = () if manifest.source_file is None else manifest.source_file.steps
    return [f"{'' if place else 'taken in':<12} {_shortened(said)}" for place, said in enumerate(steps)]


def _shortened(said: str) -> str:
    """A step that names many nodes, with the first few of them; the manifest names all."""
    head, *names = said.split(", '")
    if len(names) < NAMED:
        return said
    return ", '".join([head, *names[: NAMED - 1]]) + f" and {len(names) - NAMED + 1} more"


if __name__ == "__main__":
    program()
