"""Train the CIFAR ResNet-20 on Fashion-MNIST: the recipe of the checkpoint that ships in exporter/models/assets/.

    apt-get install dataset-fashion-mnist        # Debian; or any folder with the four IDX files
    python scripts/train.py --data /usr/share/datasets/fashion-mnist --output build/train

Reads the four IDX files, trains with SGD (momentum 0.9, Nesterov) on a one-cycle schedule, random shifts of two pixels
and mirroring, and tests on all 10,000 test images after each epoch. The last epoch's weights are the result: nothing is
selected on the test set. Seeded; stopped and started again, it goes on from the last finished epoch and ends with the same
weights as an uninterrupted run. Writes `resnet20.safetensors` and `resnet20.json` (the figure and how it came about).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from calibration.idx import read_idx
from exporter.models.cifar import CifarResNet

LAYERS, CLASSES, WEIGHT_DECAY, SHIFT_PIXELS = 20, 10, 5e-4, 2


@dataclass(frozen=True)
class Recipe:
    """All that decides the result."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Data:
    """Images as uint8 (n, 28, 28) and labels as int64 (n,); mean and std of the training pixels, scaled to 0..1."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float


def data_from_folder(folder: Path) -> Data:
    """The four IDX files of Fashion-MNIST (or MNIST), gzip-compressed or not."""

    def array(name: str) -> Tensor:
        packed = folder / f"{name}.gz"
        return torch.from_numpy(np.array(read_idx(packed if packed.exists() else folder / name)))

    images = array("train-images-idx3-ubyte")
    pixels = images.double() / 255
    return Data(
        images,
        array("train-labels-idx1-ubyte").long(),
        array("t10k-images-idx3-ubyte"),
        array("t10k-labels-idx1-ubyte").long(),
        round(pixels.mean().item(), 4),
        round(pixels.std().item(), 4),
    )


def inputs_from_images(images: Tensor, data: Data) -> Tensor:
    """uint8 (n, 28, 28) -> normalised float32 (n, 1, 28, 28), channels last."""
    scaled = (images.unsqueeze(1).float() / 255 - data.mean) / data.std
    return scaled.contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to SHIFT_PIXELS in both directions and mirrored with probability one half."""
    count, height, width = images.shape
    padded = functional.pad(images, (SHIFT_PIXELS,) * 4)
    top, left = torch.randint(2 * SHIFT_PIXELS + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    mirror = torch.rand(count, generator=generator) < 0.5
    columns[mirror] = columns[mirror].flip(1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def accuracy(model: nn.Module, data: Data) -> float:
    """Top-1 on all test images, 0..1."""
    model.eval()
    with torch.inference_mode():
        batches = torch.arange(len(data.test_labels)).tensor_split(20)
        correct = sum(int((model(inputs_from_images(data.test_images[rows], data)).argmax(1) == data.test_labels[rows]).sum()) for rows in batches)
    return correct / len(data.test_labels)


def train(recipe: Recipe, data: Data, checkpoint: Path) -> tuple[nn.Module, list[float]]:
    """The trained model and its test accuracy after each epoch; resumes from `checkpoint` if it is there."""
    torch.manual_seed(recipe.seed)
    model = CifarResNet((LAYERS - 2) // 6, 1, CLASSES).to(memory_format=torch.channels_last)
    steps = len(data.train_labels) // recipe.batch
    optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)
    history: list[float] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise click.ClickException(f"{checkpoint} is of another recipe, {state['recipe']}; remove it or choose another --output")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
    with Progress() as progress:
        for epoch in range(len(history), recipe.epochs):
            generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
            task = progress.add_task(f"epoch {epoch + 1}/{recipe.epochs}", total=steps)
            model.train()
            order = torch.randperm(len(data.train_labels), generator=generator)[: steps * recipe.batch]
            for chosen in order.view(steps, recipe.batch):
                logits = model(inputs_from_images(augmented(data.train_images[chosen], generator), data))
                loss = functional.cross_entropy(logits, data.train_labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature lacks types
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, description=f"epoch {epoch + 1}/{recipe.epochs} loss {loss.item():.3f}")
            history.append(accuracy(model, data))
            progress.console.print(f"epoch {epoch + 1}: test accuracy {history[-1]:.2%}")
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "recipe": asdict(recipe),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "history": history,
                },
                partial,
            )
            os.replace(partial, checkpoint)
    return model, history


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--data", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Folder with the four IDX files."
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("build/train"), show_default=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--learning-rate", default=0.2, show_default=True, help="Peak of the one-cycle schedule.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, output: Path, epochs: int, batch: int, learning_rate: float, seed: int) -> None:
    recipe = Recipe(epochs, batch, learning_rate, seed)
    data = data_from_folder(folder)
    output.mkdir(parents=True, exist_ok=True)
    model, history = train(recipe, data, output / "checkpoint.pt")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(weights, output / "resnet20.safetensors")
    facts = {
        "test_accuracy": history[-1],
        "test_images": len(data.test_labels),
        "mean": [data.mean],
        "std": [data.std],
        "recipe": asdict(recipe),
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
    }
    (output / "resnet20.json").write_text(json.dumps(facts, indent=2) + "\n")
    click.echo(f"{history[-1]:.2%} on {len(data.test_labels)} test images -> {output / 'resnet20.safetensors'}")


if __name__ == "__main__":
    main()
