"""The training loop of `scripts/train.py`: every step decided by the recipe, its state on disk, interruptible and exact on resuming."""

from __future__ import annotations

import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from _train_batches import Examples, Plan
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

from runtimes.errors import BadInput, PlanError, ResnetExportError

OPTIMIZERS, SCHEDULES = ("sgd", "adam"), ("onecycle", "multistep", "cosine")
MOMENTUM, DROPS, DROP_FACTOR = 0.9, (0.5, 0.75), 0.1
JUDGED_AT_ONCE, STEPS_A_LINE = 500, 10
CHECKPOINT, BEST = "checkpoint.pt", "best.pth"


class TrainingFailed(ResnetExportError):
    """The loss is no number any more."""


class Stopped(Exception):
    """Somebody asked to stop, by this signal; the state on disk is that of the last whole step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass(frozen=True)
class Recipe:
    """All that decides the result; `weights` is the sha256 of what fine-tuning starts from, and `image` the network's input."""

    model: str
    classes: tuple[str, ...]
    training_images: int
    held_out_images: int
    image: tuple[int, int, int]
    weights: str | None
    freeze: bool
    optimizer: str
    schedule: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    seed: int

    @property
    def steps(self) -> int:
        """In an epoch; what does not fill a batch is left to the next epoch's order."""
        return self.training_images // self.batch


@dataclass
class Run:
    """What a step changes, `trained` being the part of the model that is not frozen; `half` is the type to compute in on a GPU."""

    model: nn.Module
    trained: nn.Module
    optimizer: Optimizer
    schedule: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    half: torch.dtype | None
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0


def new_run(
    recipe: Recipe, model: nn.Module, trained: nn.Module, device: torch.device, half: torch.dtype | None
) -> Run:
    """At the first step."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    model.to(device).to(memory_format=torch.channels_last)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    parameters = list(trained.parameters())
    optimizer: Optimizer = (
        SGD(parameters, rate, momentum=MOMENTUM, weight_decay=decay, nesterov=True)
        if recipe.optimizer == "sgd"
        else Adam(parameters, rate, weight_decay=decay)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    return Run(model, trained, optimizer, _schedule(recipe, optimizer), scaler, device, half)


def _schedule(recipe: Recipe, optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """One step of it for each batch. Multistep divides by ten at one half and three quarters, as in He et al. 2015, section 4.2."""
    steps = recipe.epochs * recipe.steps
    if recipe.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    if recipe.schedule == "multistep":
        return lr_scheduler.MultiStepLR(optimizer, [round(steps * part) for part in DROPS], DROP_FACTOR)
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def train(recipe: Recipe, run: Run, training: Examples, held_out: Examples, folder: Path) -> None:
    """Goes on from the checkpoint in `folder`, if there is one, until all epochs are done. Writes CHECKPOINT and BEST.

    Raises:
        Stopped: on SIGINT or SIGTERM, after the step in progress.
        BadInput, PlanError: the checkpoint cannot be read, or is of another recipe.
        TrainingFailed: the loss became NaN or infinite.
    """
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        _restore(recipe, run, checkpoint)
    console = Console(stderr=True, highlight=False)
    with _stop_on_signal() as check:
        for epoch in range(len(run.history), recipe.epochs):
            begin = time.perf_counter()
            try:
                facts = _epoch(recipe, run, training, held_out, check, console)
            except Stopped:
                write_in_one_step(checkpoint, lambda path: torch.save(_state(recipe, run), path))
                raise
            if facts["accuracy"] > max((one["accuracy"] for one in run.history), default=-1.0):
                write_in_one_step(folder / BEST, lambda path: torch.save(weights_of(run.model), path))
            run.history.append(facts)
            run.step, run.loss_sum, run.correct = 0, 0.0, 0
            write_in_one_step(checkpoint, lambda path: torch.save(_state(recipe, run), path))
            console.print(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {facts['loss']:.3f}, training accuracy {facts['training_accuracy']:.2%},"
                f" held out {facts['accuracy']:.2%}, {time.perf_counter() - begin:.1f} s"
            )


def _epoch(
    recipe: Recipe, run: Run, training: Examples, held_out: Examples, check: Callable[[], None], console: Console
) -> dict[str, float]:
    """What is left of the current epoch, and its figures."""
    epoch = len(run.history)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if not run.step:
        torch.manual_seed(
            recipe.seed * 1000 + epoch
        )  # for dropout and the like; order and augmentation have a generator of their own
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"epoch {epoch + 1}/{recipe.epochs}", total=recipe.steps, completed=run.step)
        set_training_mode(run)
        for inputs, labels in training.batches(_plan(recipe, training, epoch, run.step)):
            _step(run, inputs, labels)
            if run.step % STEPS_A_LINE == 0 or run.step == recipe.steps:
                seen = run.step * recipe.batch
                figures = f"loss {run.loss_sum / run.step:.3f} accuracy {run.correct / seen:.2%}"
                progress.update(task, completed=run.step, description=f"epoch {epoch + 1}/{recipe.epochs} {figures}")
            check()
        mean = run.loss_sum / recipe.steps
        if not math.isfinite(mean):
            raise TrainingFailed(
                f"the loss is {mean} in epoch {epoch + 1}; lower --learning-rate (now {recipe.learning_rate:g})"
            )
        progress.update(task, description=f"epoch {epoch + 1}/{recipe.epochs} judging")
        share = accuracy(run, held_out, check)
    return {"loss": mean, "training_accuracy": run.correct / (recipe.steps * recipe.batch), "accuracy": share}


def _plan(recipe: Recipe, examples: Examples, epoch: int, done: int) -> Plan:
    """The batches of an epoch from step `done` on: the same whether the ones before were trained on or are only counted off."""
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
    order = torch.randperm(examples.count, generator=generator)[: recipe.steps * recipe.batch]
    for step, places in enumerate(order.view(recipe.steps, recipe.batch)):
        drawn = examples.draw(recipe.batch, generator)
        if step >= done:
            yield places, drawn


def set_training_mode(run: Run) -> None:
    """What is frozen stays in evaluation mode: its batch norms keep their statistics too."""
    run.model.eval()
    run.trained.train()


def _step(run: Run, inputs: Tensor, labels: Tensor) -> None:
    inputs = inputs.to(run.device, memory_format=torch.channels_last)
    labels = labels.to(run.device)
    with torch.autocast(run.device.type, run.half, enabled=run.half is not None):
        logits = run.model(inputs)
        loss = functional.cross_entropy(logits, labels)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's own signature lacks types
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    run.step += 1
    run.loss_sum += loss.item()
    run.correct += int((logits.argmax(1) == labels).sum())


def accuracy(run: Run, examples: Examples, check: Callable[[], None]) -> float:
    """Top-1 on all of them, 0..1, in FP32."""
    run.model.eval()
    correct = 0
    plan: Plan = (
        (torch.arange(first, min(first + JUDGED_AT_ONCE, examples.count)), None)
        for first in range(0, examples.count, JUDGED_AT_ONCE)
    )
    with torch.inference_mode():
        for inputs, labels in examples.batches(plan):
            logits = run.model(inputs.to(run.device, memory_format=torch.channels_last))
            correct += int((logits.argmax(1).cpu() == labels).sum())
            check()
    return correct / examples.count


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU, dense; without the batch norms' counters, which nothing reads."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _state(recipe: Recipe, run: Run) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "scaler": run.scaler.state_dict(),
        "random": torch.get_rng_state(),
        "history": run.history,
        "step": run.step,
        "loss_sum": run.loss_sum,
        "correct": run.correct,
    }


def _restore(recipe: Recipe, run: Run, checkpoint: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocols of files that are then refused
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        theirs, ours = state["recipe"], asdict(recipe)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{checkpoint} cannot be read as a checkpoint of this script; remove it or choose another --output"
        ) from error
    differing = [
        f"{name} {theirs.get(name)} instead of {value}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if differing:
        raise PlanError(
            f"{checkpoint} is of another run ({'; '.join(differing[:3])}); remove it or choose another --output"
        )
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    run.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"])
    run.history, run.step, run.loss_sum, run.correct = (
        state["history"],
        state["step"],
        state["loss_sum"],
        state["correct"],
    )


def write_in_one_step(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then rename: whatever happens, `path` is the old file or the new one.

    Raises:
        BadInput: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError where the disk is full
        raise BadInput(f"cannot write {path}: {error}; free some space or choose another --output") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], None]]:
    """A function that raises `Stopped` once SIGINT or SIGTERM came; a second one stops at once, with what is on disk."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        os.write(
            2, b"stopping after this step; once more to stop at once\n"
        )  # a console may be in the middle of a line, or of an import

    def check() -> None:
        if came:
            raise Stopped(came[0])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
