"""Train a classifier from scratch, or fine-tune one, on your own pictures, Fashion-MNIST or CIFAR-10; the result goes into resnet-export.

    python scripts/train.py --data flowers --model resnet18 --weights default --epochs 5         # fine-tune; flowers/daisy/1.jpg, ...
    python scripts/train.py --data flowers --model resnet18 --schedule cosine --epochs 90        # from scratch
    python scripts/train.py --data cifar10 --download --schedule multistep --epochs 100          # fetches CIFAR-10 into that folder
    apt-get install dataset-fashion-mnist        # Debian; or any folder with the four IDX files
    python scripts/train.py --data /usr/share/datasets/fashion-mnist --output build/train

The last command is the one that made the resnet20 in exporter/models/assets/. --data is a folder with `train` and `val`, each with a
folder for each class; or the class folders themselves, of which a part is held out; or one with IDX files or CIFAR-10, judged on their
own test images. In --output:

    best.pth              the weights of the epoch that did best on what is held out
    MODEL.safetensors     the last epoch's weights, selected on nothing, and in MODEL.json how good they are and how they came about
    class_indices.json    {"0": "daisy", ...}
    checkpoint.pt         to go on from: the same command, after Ctrl-C or a crash, ends with the weights of an uninterrupted run

From scratch: SGD with Nesterov momentum 0.9. Fine-tuning: Adam, and a new head where the classes are other ones. On a GPU in mixed precision.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# As in resnet-export: threads that wait by spinning take the cores from those that work, on a machine that does anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import click
import torch
from _train_batches import examples_of
from _train_data import Data, Request, open_data
from _train_loop import BEST, OPTIMIZERS, SCHEDULES, Recipe, Run, Stopped, new_run, train, weights_of, write_in_one_step
from _train_start import Network, Start, export_options, start
from safetensors.torch import save_file

from exporter.cli._common import run_command
from exporter.pipeline.plan import size_from_text
from runtimes.errors import BackendUnavailable, BadInput, PlanError

LEARNING_RATES = {"onecycle": 0.2, "multistep": 0.1, "cosine": 0.1}
ADAM_RATE, ADAM_HEAD_RATE = 1e-4, 1e-3
SGD_DECAY, ADAM_DECAY = 5e-4, 0.0
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Settings:
    """The command line, its defaults filled in."""

    data: Request
    output: Path
    network: Network
    epochs: int
    batch: int
    optimizer: str
    schedule: str
    learning_rate: float
    weight_decay: float
    workers: int
    device: torch.device
    half: torch.dtype | None


def settings_from_options(options: dict[str, Any]) -> Settings:
    """Defaults that depend on other options, and contradictions.

    Raises:
        PlanError: options that contradict each other.
        BackendUnavailable: --device cuda without one.
    """
    weights, seed = options["weights"], options["seed"]
    if options["freeze"] and weights is None:
        raise PlanError("--freeze needs --weights: a backbone of random weights has nothing worth keeping")
    if weights == "random":
        raise PlanError(
            "expected --weights default or a checkpoint, got random; leave the option out to train from scratch"
        )
    optimizer = options["optimizer"] or ("sgd" if weights is None else "adam")
    schedule = options["schedule"] or ("onecycle" if optimizer == "sgd" else "cosine")
    rate = LEARNING_RATES[schedule] if optimizer == "sgd" else ADAM_HEAD_RATE if options["freeze"] else ADAM_RATE
    decay = SGD_DECAY if optimizer == "sgd" else ADAM_DECAY
    device = _device(options["device"])
    return Settings(
        data=Request(options["folder"], options["val_fraction"], seed, options["download"]),
        output=options["output"],
        network=Network(
            options["model"],
            weights,
            options["freeze"],
            size_from_text(options["image_size"]) if options["image_size"] else None,
        ),
        epochs=options["epochs"],
        batch=options["batch"],
        optimizer=optimizer,
        schedule=schedule,
        learning_rate=rate if options["learning_rate"] is None else options["learning_rate"],
        weight_decay=decay if options["weight_decay"] is None else options["weight_decay"],
        workers=options["workers"],
        device=device,
        half=None if options["fp32"] or device.type == "cpu" else _half(device),
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "--device cuda: PyTorch sees no CUDA device here; leave the option out to train on the CPU"
        )
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def _half(device: torch.device) -> torch.dtype:
    """BF16 needs no loss scaling; GPUs before Ampere compute it slowly."""
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY else torch.float16


def recipe_of(settings: Settings, data: Data, begin: Start) -> Recipe:
    training = len(data.training.labels)
    return Recipe(
        model=settings.network.model,
        classes=data.classes,
        training_images=training,
        held_out_images=len(data.held_out.labels),
        image=begin.preprocess.shape,
        weights=begin.weights,
        freeze=settings.network.freeze,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        epochs=settings.epochs,
        batch=min(settings.batch, training),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=settings.data.seed,
    )


def write_results(settings: Settings, data: Data, recipe: Recipe, begin: Start, run: Run) -> list[str]:
    """The last weights and the facts; lines that say so, the last one how to export."""
    folder, stem = settings.output, re.sub(r"[^\w.-]", "-", recipe.model)
    weights = folder / f"{stem}.safetensors"
    write_in_one_step(weights, lambda path: save_file(weights_of(run.model), path))
    scores = [one["accuracy"] for one in run.history]
    best, kind = scores.index(max(scores)), data.held_out_name
    facts = {
        f"{kind}_accuracy": scores[-1],
        f"{kind}_images": recipe.held_out_images,
        "mean": begin.preprocess.mean,
        "std": begin.preprocess.std,
        "recipe": asdict(recipe),
        "best": {"epoch": best + 1, f"{kind}_accuracy": scores[best]},
        "epochs": run.history,
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
    }
    write_in_one_step(
        folder / f"{stem}.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    )
    command = [
        "resnet-export",
        recipe.model,
        "--weights",
        str(folder / BEST),
        "--labels",
        str(folder / "class_indices.json"),
    ]
    return [
        f"{scores[-1]:.2%} on {recipe.held_out_images} {kind} images -> {weights}",
        f"{scores[best]:.2%} in epoch {best + 1}, the best of {len(scores)} -> {folder / BEST}",
        shlex.join([*command, *export_options(recipe.model, begin.preprocess)]),
    ]


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with train and val, classes, IDX files or CIFAR-10.",
)
@click.option("--download", is_flag=True, help="Fetch CIFAR-10 into --data first.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, True, True),
    default=0.2,
    show_default=True,
    help="Of a tree without val.",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("build/train"), show_default=True
)
@click.option("--model", default="resnet20", show_default=True, help="Any of resnet-export --list.")
@click.option("--weights", metavar="default|FILE", help="Fine-tune these.  [default: from scratch]")
@click.option("--freeze", is_flag=True, help="Train the last layer alone.")
@click.option(
    "--image-size", metavar="N|HxW", help="Input size in pixels.  [default: the model's; small networks: the pictures']"
)
@click.option("--epochs", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--batch", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="[default: sgd, or adam with --weights]")
@click.option("--schedule", type=click.Choice(SCHEDULES), help="[default: onecycle, or cosine with adam]")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="The largest.  [default: sgd 0.2 with onecycle, else 0.1; adam 1e-4, with --freeze 1e-3]",
)
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: sgd 5e-4, adam 0]")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Threads that decode pictures; no part of the result.",
)
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option("--fp32", is_flag=True, help="No mixed precision on a GPU.")
def command(**options: Any) -> None:
    settings = settings_from_options(options)
    data = open_data(settings.data)
    begin = start(settings.network, data, settings.data.seed)
    recipe = recipe_of(settings, data, begin)
    training, held_out = (
        examples_of(part, begin.preprocess, data.shift, settings.workers) for part in (data.training, data.held_out)
    )
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output: cannot make the folder {settings.output}: {error}") from error
    indices = json.dumps({str(index): name for index, name in enumerate(data.classes)}, indent=2, ensure_ascii=False)
    run = new_run(recipe, begin.module, begin.trained, settings.device, settings.half)
    try:
        train(recipe, run, training, held_out, settings.output)
    except Stopped as stopped:
        click.echo(
            f"stopped in epoch {len(run.history) + 1} of {recipe.epochs}; the same command goes on from here", err=True
        )
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)
    write_in_one_step(
        settings.output / "class_indices.json", lambda path: path.write_text(indices + "\n", encoding="utf-8")
    )
    click.echo("\n".join(write_results(settings, data, recipe, begin, run)))


def main() -> None:
    """Entry point of the script."""
    run_command(command)


if __name__ == "__main__":
    main()
