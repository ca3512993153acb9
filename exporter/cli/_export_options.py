"""The options of `resnet-export`, in the groups and the order of its `--help`, and the plan that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from exporter.cli._help import Command, option_group
from exporter.lowering.opsets import BF16_OPSET, OPSETS
from exporter.lowering.registry import precision_names
from exporter.models.registry import PAD, PROJECTION, V1, V1_5
from exporter.models.request import CHANNELS_ORDERS, INTERPOLATIONS
from exporter.pipeline.plan import (
    CROP,
    ExportPlan,
    channels_from_text,
    check_uint8_input,
    resize_from_text,
    size_from_text,
)
from runtimes.errors import PlanError
from runtimes.specs import BatchRange

MOST_USED = ("fp16", "int8", "bf16", "fp32")
"""The order of the precisions in `--help`; others follow."""

_model, _precision, _calibration = map(option_group, ("Model", "Precision", "Proof and calibration"))
_input, _output = map(option_group, ("Input", "Output"))


def _precision_flags() -> list[Callable[..., Any]]:
    names = sorted(precision_names(), key=lambda name: MOST_USED.index(name) if name in MOST_USED else len(MOST_USED))
    return [
        _precision(
            f"--{name}",
            is_flag=True,
            help=f"Export in {name.upper()}{' (the default)' if name == 'fp32' else ''}.",
        )
        for name in names
    ]


OPTIONS = (
    _model(
        "--weights",
        default="default",
        show_default=True,
        metavar="default|random|FILE",
        help="Pretrained weights, seeded random ones, or a checkpoint file.",
    ),
    _model(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE|DIR",
        help="Class names: a file with one a line, JSON, a Python dict, or a folder with one subfolder a class.",
    ),
    _model("--num-classes", type=int, metavar="N", help="Number of classes, with random weights or a checkpoint."),
    _model(
        "--features",
        metavar="pool|stages",
        help="Export features instead of logits: the pooled vector, or the outputs of layer1, layer2 ...",
    ),
    _model(
        "--variant",
        type=click.Choice([V1_5, V1]),
        help="Bottleneck blocks stride in the 3x3 convolution (v1.5) or the first 1x1 (v1); weights fit both."
        "  [default: v1.5]",
    ),
    _model(
        "--shortcut",
        type=click.Choice([PROJECTION, PAD]),
        help="CIFAR ResNets widen their shortcuts by a 1x1 convolution, or by zero padding.  [default: projection]",
    ),
    _model(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        help="Seed of random weights and of the images chosen.",
    ),
    _model("--keep-softmax", is_flag=True, help="Of an ONNX file that ends in a Softmax, export that too."),
    _model("--list", "list_models", is_flag=True, help="List the models and exit."),
    *_precision_flags(),
    _precision(
        "--target",
        default="tensorrt",
        show_default=True,
        metavar="NAME",
        help="What --int8 is for: tensorrt, or cpu, where ONNX Runtime and OpenVINO run it on integers.",
    ),
    _precision(
        "--cpu-safe",
        "target",
        flag_value="cpu-safe",
        help="As --target cpu, with 7-bit weights: for OpenVINO on x86 processors without VNNI.",
    ),
    _precision(
        "--dla-friendly",
        is_flag=True,
        help="Write pools and classifier in what a Jetson's DLA has; with --fp16 or --int8, and one batch size.",
    ),
    _precision(
        "--recalibrate",
        is_flag=True,
        help="Of an ONNX file that is quantized already, measure ranges anew; else --int8 keeps its scales.",
    ),
    _precision(
        "--dequantize",
        is_flag=True,
        help="Of an ONNX file that is quantized already, export the float network behind it.",
    ),
    _precision(
        "--opset",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"ONNX opset.  [default: {OPSETS[-1]}, the newest that TensorRT 10.3 reads; {BF16_OPSET} for --bf16]",
    ),
    _calibration(
        "--data",
        metavar="SOURCE",
        help="Images for the proof and for calibration: a folder (with or without class folders), an .npz file, an IDX"
        " file, or the URL of one (s3://, gs://, hf://); or built-in.",
    ),
    _calibration(
        "--calibration-images", type=int, metavar="N", help="Images to calibrate on.  [default: 512, or all if fewer]"
    ),
    _calibration(
        "--calibrator",
        metavar="NAME",
        help="How INT8 ranges are read off the histograms: mse, entropy, minmax, percentile-99.9, -99.99 or -99.999."
        "  [default: the one whose outputs are nearest to FP32's]",
    ),
    _calibration(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Reuse the ranges in this calibration.json instead of measuring them.",
    ),
    _calibration("--allow-few-images", is_flag=True, help="Allow calibration on fewer than 64 images."),
    _calibration(
        "--proof-images",
        type=int,
        metavar="N",
        help="Prove with at most N images.  [default: as many as it takes, at most 2000]",
    ),
    _calibration(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="With --int8: return blocks to float until top-1 falls by at most so many points. Needs labelled --data.",
    ),
    _calibration(
        "--min-agreement",
        type=float,
        metavar="PCT",
        help="With --int8: return blocks to float until at least so many percent of --data keep their class.",
    ),
    _calibration(
        "--budget",
        multiple=True,
        metavar="NAME=VALUE",
        help="Limit that replaces the precision's own, such as min_agreement=0.99; repeatable.",
    ),
    _input(
        "--batch", default="1:8:32", show_default=True, metavar="N|MIN:OPT:MAX", help="Batch size, or a range of them."
    ),
    _input("--image-size", metavar="N|HxW", help="Input size in pixels.  [default: the model's]"),
    _input(
        "--resize",
        metavar="N|HxW",
        help="Size of a picture before its centre is cut out: of the shorter side, or height x width."
        "  [default: in the model's ratio to the input]",
    ),
    _input(
        "--interpolation",
        type=click.Choice(INTERPOLATIONS),
        metavar="NAME",
        help=f"How it is resized: {', '.join(INTERPOLATIONS[:-1])} or {INTERPOLATIONS[-1]}.  [default: the weights']",
    ),
    _input(
        "--uint8-input",
        is_flag=False,
        flag_value=CROP,
        metavar="[full]",
        help="Take uint8 pixels (batch, height, width, channels) and normalise them in the graph; with full, take"
        " images of any size and resize and crop them in the graph, too.",
    ),
    _input("--mean", metavar="R,G,B", help="Mean of each channel, for pixels scaled to 0..1.  [default: the weights']"),
    _input("--std", metavar="R,G,B", help="Standard deviation of each channel, likewise.  [default: the weights']"),
    _input("--scale", type=int, metavar="255", help="Read --mean and --std as about pixels of 0..255, as Caffe's are."),
    _input(
        "--channels-order",
        type=click.Choice(CHANNELS_ORDERS),
        metavar="rgb|bgr",
        help="Order in which the network takes the channels; --mean and --std stay R,G,B.  [default: rgb]",
    ),
    _output(
        "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.  [default: MODEL-PRECISION]"
    ),
    _output("--force", is_flag=True, help="Replace a bundle that is already there, once the new one is complete."),
    _output(
        "--keep-rejected",
        is_flag=True,
        help="Write a bundle that is refused, too, with its report, as DIR.rejected; nothing runs it.",
    ),
    _output(
        "--no-reference",
        is_flag=True,
        help="Leave the FP32 reference (reference.pt2 or .onnx) out of the bundle.",
    ),
    _output(
        "--no-report",
        is_flag=True,
        help="Leave report.html out of the bundle, and the run block by block that it takes; the proof is the same.",
    ),
    _output("--dry-run", is_flag=True, help="Print what would be done and exit."),
    _output("--json", "as_json", is_flag=True, help="Print the manifest as JSON on stdout."),
    _output("--quiet", is_flag=True, help="Show no progress; errors alone go to stderr."),
)


def export_options(command: Command) -> Command:
    """Give a command all of `OPTIONS`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def plan_from_options(options: dict[str, Any]) -> ExportPlan:
    """The plan that the values of the options, by parameter name, and MODEL ask for.

    Raises:
        PlanError: they contradict each other, or one is out of range.
        UnknownName: a name that is in no table; lists the nearest.
    """
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
        resize=resize_from_text(options["resize"]) if options["resize"] else None,
        interpolation=options["interpolation"],
        channels_order=options["channels_order"],
        mean=channels_from_text(options["mean"], "--mean") if options["mean"] else None,
        std=channels_from_text(options["std"], "--std") if options["std"] else None,
        scale=1 if options["scale"] is None else options["scale"],
        batch=BatchRange.parse(options["batch"]),
        target=options["target"],
        opset=options["opset"] or 0,
        seed=options["seed"],
        data=options["data"],
        calibrator=options["calibrator"],
        calibration_images=options["calibration_images"],
        calibration=options["calibration"],
        allow_few_images=options["allow_few_images"],
        proof_images=options["proof_images"],
        budget=_limits(options["budget"]),
        max_drop=options["max_drop"],
        min_agreement=options["min_agreement"],
        keep_rejected=options["keep_rejected"],
        reference=not options["no_reference"],
        report=not options["no_report"],
        force=options["force"],
        features=options["features"],
        uint8_input=options["uint8_input"],
        variant=options["variant"] or options["shortcut"],
        keep_softmax=options["keep_softmax"],
        dequantize=options["dequantize"],
        recalibrate=options["recalibrate"],
        dla_friendly=options["dla_friendly"],
    )
    return plan if options["output"] else replace(plan, output=Path(plan.name))


def _limits(given: tuple[str, ...]) -> dict[str, float]:
    if not given:
        return {}
    from runtimes.parity.budget_options import budget_from_text  # here: it loads numpy, and a dry run may not

    return budget_from_text(given)
