"""`resnet-export`: export a ResNet, by name or from a checkpoint, to a proven bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._common import echo_json, echo_lines, gives_text, run_command, size_text, status
from exporter.cli._help import GroupedCommand, option_group
from exporter.lowering.opsets import BF16_OPSET, OPSETS
from exporter.lowering.registry import precision_names
from exporter.lowering.request import CALIBRATOR
from exporter.models.registry import MODELS, PAD, PROJECTION, V1, V1_5
from exporter.pipeline.plan import CROP, FULL, ExportPlan, channels_from_text, check_uint8_input, size_from_text
from runtimes._plugins import needed_for
from runtimes.errors import PlanError
from runtimes.specs import BatchRange

if TYPE_CHECKING:
    from exporter.pipeline.export import Export

INPUTS = {
    None: "float32, (batch, channels, height, width)",
    CROP: "uint8 pixels, (batch, height, width, channels)",
    FULL: "uint8 pixels, (batch, height, width, channels), pictures of any size",
}
EPILOG = """\b
Examples:
  resnet-export resnet50 --fp16
  resnet-export resnet18 --weights model.pth --labels names.txt --batch 1:4:16
  resnet-export resnet20 --fp16 --output build/resnet20-fp16 --json
  resnet-export my_package.nets:make_net --image-size 224 --fp16

\b
Exit codes: 0 done and within budget, 1 failed, 2 wrong usage,
            3 something needed is missing, 4 out of the parity budget."""
MOST_USED = ("fp16", "int8", "bf16", "fp32")
"""The order of the precisions in `--help`; others follow."""

_model, _precision, _calibration = map(option_group, ("Model", "Precision", "Proof and calibration"))
_input, _output = map(option_group, ("Input", "Output"))


def _precision_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    names = sorted(precision_names(), key=lambda name: MOST_USED.index(name) if name in MOST_USED else len(MOST_USED))
    for name in reversed(names):
        default = " (the default)" if name == "fp32" else ""
        command = _precision(f"--{name}", is_flag=True, help=f"Export in {name.upper()}{default}.")(command)
    return command


@click.command(cls=GroupedCommand, epilog=EPILOG, no_args_is_help=True)
@click.argument("model", required=False)
@_model(
    "--weights",
    default="default",
    show_default=True,
    metavar="default|random|FILE",
    help="Pretrained weights, seeded random ones, or a checkpoint file.",
)
@_model(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Class names: a file with one a line, JSON, a Python dict, or a folder with one subfolder a class.",
)
@_model("--num-classes", type=int, metavar="N", help="Number of classes, with random weights or a checkpoint.")
@_model(
    "--features",
    metavar="pool|stages",
    help="Export features instead of logits: the pooled vector, or the outputs of layer1, layer2 ...",
)
@_model(
    "--variant",
    type=click.Choice([V1_5, V1]),
    help="Bottleneck blocks stride in the 3x3 convolution (v1.5) or the first 1x1 (v1); weights fit both."
    "  [default: v1.5]",
)
@_model(
    "--shortcut",
    type=click.Choice([PROJECTION, PAD]),
    help="CIFAR ResNets widen their shortcuts by a 1x1 convolution, or by zero padding.  [default: projection]",
)
@_model(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of random weights and of the images chosen.",
)
@_model("--list", "list_models", is_flag=True, help="List the models and exit.")
@_precision_flags
@_precision(
    "--target",
    default="tensorrt",
    show_default=True,
    metavar="NAME",
    help="Runtime that --int8 places its Q/DQ pairs for; only tensorrt so far.",
)
@_precision(
    "--opset",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"ONNX opset.  [default: {OPSETS[-1]}, the newest that TensorRT 10.3 reads; {BF16_OPSET} for --bf16]",
)
@_calibration(
    "--data",
    metavar="SOURCE",
    help="Images for the proof and for calibration: a folder (with or without class folders), an .npz file, an IDX"
    " file, or built-in.",
)
@_calibration(
    "--calibration-images", type=int, metavar="N", help="Images to calibrate on.  [default: 512, or all if fewer]"
)
@_calibration(
    "--calibrator",
    metavar="NAME",
    help="How INT8 ranges are read off the histograms: mse, entropy, minmax, percentile-99.9, -99.99 or -99.999."
    f"  [default: {CALIBRATOR}]",
)
@_calibration(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Reuse the ranges in this calibration.json instead of measuring them.",
)
@_calibration("--allow-few-images", is_flag=True, help="Allow calibration on fewer than 64 images.")
@_input("--batch", default="1:8:32", show_default=True, metavar="N|MIN:OPT:MAX", help="Batch size, or a range of them.")
@_input("--image-size", metavar="N|HxW", help="Input size in pixels.  [default: the model's]")
@_input(
    "--uint8-input",
    is_flag=False,
    flag_value=CROP,
    metavar="[full]",
    help="Take uint8 pixels (batch, height, width, channels) and normalise them in the graph; with full, take images"
    " of any size and resize and crop them in the graph, too.",
)
@_input("--mean", metavar="R,G,B", help="Mean of each channel, for pixels scaled to 0..1.  [default: the weights']")
@_input("--std", metavar="R,G,B", help="Standard deviation of each channel, likewise.  [default: the weights']")
@_output(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.  [default: MODEL-PRECISION]"
)
@_output("--force", is_flag=True, help="Replace a bundle that is already there, once the new one is complete.")
@_output("--no-reference", is_flag=True, help="Leave reference.pt2, the FP32 program, out of the bundle.")
@_output("--dry-run", is_flag=True, help="Print what would be done and exit.")
@_output("--json", "as_json", is_flag=True, help="Print the manifest as JSON on stdout.")
@_output("--quiet", is_flag=True, help="Show no progress; errors alone go to stderr.")
@click.version_option(package_name="resnet-export")
def command(**options: Any) -> None:
    """Export MODEL to a bundle: an ONNX graph in the precision asked for, and the proof that it agrees with PyTorch.

    MODEL is a name from --list, another name of the same pattern (resnext50_16x8d), or package.module:factory, a
    callable that returns a torch.nn.Module. That module is imported from the current folder or the installed packages,
    which runs its code.
    """
    if options["list_models"]:
        return _list(as_json=options["as_json"])
    plan = _plan(options)
    if options["dry_run"]:
        return _describe(plan, as_json=options["as_json"])
    from runtimes.bundle_writing import check_destination

    check_destination(plan.output, force=plan.force)  # before the packages are loaded
    with status(quiet=options["quiet"]) as progress:
        start = time.perf_counter()
        progress("load packages")
        # Threads that wait by spinning take the cores from those that work, on a machine that does anything else
        # (measured: 2.5 times the time).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        with needed_for("exporting", "pip install 'resnet-export[export]'"):
            from exporter.pipeline.export import export
        if plan.spec.source == "custom":
            progress(f"import {plan.model}, which runs its code")
        loading = round(time.perf_counter() - start, 3)
        result = export(plan, progress)
    seconds = {"load packages": loading, **result.seconds}
    if options["as_json"]:
        echo_json(_json(result, seconds))
    else:
        echo_lines(_summary(result, seconds))


def main() -> None:
    """Entry point of `resnet-export`."""
    run_command(command)


def _plan(options: dict[str, Any]) -> ExportPlan:
    check_uint8_input(options["uint8_input"])  # first: it may have taken the MODEL for its own
    if options["model"] is None:
        raise PlanError("expected a MODEL, got none; see resnet-export --list")
    chosen = [name for name in precision_names() if options[name]]
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise PlanError(f"expected one precision, got {flags}; export one bundle for each")
    precision = chosen[0] if chosen else "fp32"
    if options["variant"] and options["shortcut"]:
        raise PlanError("expected --variant or --shortcut, got both: no model has a choice of each")
    plan = ExportPlan(
        model=options["model"],
        output=options["output"] or Path(),
        precision=precision,
        weights=options["weights"],
        classes=options["num_classes"],
        labels=options["labels"],
        image_size=size_from_text(options["image_size"]) if options["image_size"] else None,
        mean=channels_from_text(options["mean"], "--mean") if options["mean"] else None,
        std=channels_from_text(options["std"], "--std") if options["std"] else None,
        batch=BatchRange.parse(options["batch"]),
        target=options["target"],
        opset=options["opset"] or 0,
        seed=options["seed"],
        data=options["data"],
        calibrator=options["calibrator"],
        calibration_images=options["calibration_images"],
        calibration=options["calibration"],
        allow_few_images=options["allow_few_images"],
        reference=not options["no_reference"],
        force=options["force"],
        features=options["features"],
        uint8_input=options["uint8_input"],
        variant=options["variant"] or options["shortcut"],
    )
    return plan if options["output"] else replace(plan, output=Path(plan.name))


def _list(*, as_json: bool) -> None:
    if as_json:
        fields = ("source", "parameters", "macs", "size", "variants")
        return echo_json({name: {field: getattr(spec, field) for field in fields} for name, spec in MODELS.items()})
    click.echo(f"{'model':<18} {'parameters':>12} {'GMACs':>8} {'pixels':>7}  {'source':<12} variants")
    for spec in MODELS.values():
        counts = f"{(spec.parameters or 0) / 1e6:>10.2f} M {(spec.macs or 0) / 1e9:>8.3f}"
        click.echo(f"{spec.name:<18} {counts} {spec.size:>7}  {spec.source:<12} {', '.join(spec.variants)}")


def _describe(plan: ExportPlan, *, as_json: bool) -> None:
    files = ["manifest.json", "model.onnx", *["reference.pt2"] * plan.reference, "golden.npz", "report.html"]
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
        "output": str(plan.output),
        "files": files,
    }
    if as_json:
        return echo_json(facts)
    for key, value in facts.items():
        click.echo(f"{key:<10} {', '.join(value) if isinstance(value, list) else value}")
    if plan.labels is None and not plan.features:
        click.echo(f"{'':<10} labels.txt, if class names come with the weights")
    click.echo("nothing was written (--dry-run)")


def _json(result: Export, seconds: dict[str, float]) -> dict[str, Any]:
    import msgspec

    facts = {"bundle": str(result.folder), **msgspec.to_builtins(result.manifest)}
    return {**facts, "no_accuracy": result.no_accuracy, "seconds": seconds}


def _summary(result: Export, seconds: dict[str, float]) -> list[str]:
    from exporter.verification.report.lines import accuracy_line, parity_lines

    manifest = result.manifest
    lines = [
        f"{'bundle':<12} {result.folder}",
        f"{'model':<12} {manifest.model.name}, {manifest.model.weights.kind} weights, {gives_text(manifest)},"
        f" {manifest.precision}, batch {manifest.batch}",
        *parity_lines(manifest.parity),
    ]
    if (facts := manifest.calibration) is not None:
        lines.append(
            f"{'calibration':<12} {facts.calibrator}, {facts.images} images, fingerprint {facts.fingerprint[:16]}"
        )
    if manifest.accuracy is not None:
        lines.append(accuracy_line(manifest.accuracy))
    elif result.no_accuracy:
        lines.append(f"{'accuracy':<12} not measured: {result.no_accuracy}")
    sizes = ", ".join(f"{name} {size_text(file.bytes)}" for name, file in manifest.files.items())
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return [*lines, f"{'size':<12} {sizes}", f"{'seconds':<12} {sum(seconds.values()):.1f}: {steps}"]


if __name__ == "__main__":
    main()
