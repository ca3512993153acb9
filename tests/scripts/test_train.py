"""`scripts/train.py`: what it reads, that stopping changes nothing, and that its checkpoint goes straight into `resnet-export`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran, run_main
from numpy.typing import NDArray
from PIL import Image
from rounding import RUNNABLE
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from calibration.data import FASHION_MNIST_CLASSES, built_in
from calibration.idx import read_idx
from exporter.cli import deploy as deploy_cli
from exporter.models.registry import find_model
from exporter.models.sources.cifar import ASSETS, CifarResNet, preprocess
from runtimes.errors import BadInput, PlanError
from runtimes.preprocess import Preprocess

SCRIPTS = Path(__file__).parents[2] / "scripts"
CLASSES = ("Bag", "Sneaker", "Trouser")
GREY = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and waiting threads cost much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of `scripts/`, found as when the script itself is run."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def train(
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """`scripts/train.py` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ran:
        return run_main(script("train").main, arguments, capsys, monkeypatch)

    return call


def tree(folder: Path, count: int, split: Any = "train", classes: Sequence[str] = CLASSES) -> Path:
    """The first `count` built-in pictures of each class as PNGs, a folder for each class."""
    source = built_in(split)
    assert source.labels is not None
    for name in classes:
        (folder / name).mkdir(parents=True)
        for place in np.flatnonzero(source.labels == FASHION_MNIST_CLASSES.index(name))[:count]:
            source.image(int(place)).save(folder / name / f"{place}.png")
    return folder


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def idx_folder(folder: Path, training: int, test: int) -> Path:
    """Fashion-MNIST's layout, of built-in pictures."""
    folder.mkdir()
    for part, split, count in (("train", "train", training), ("t10k", "test", test)):
        source = built_in("train" if split == "train" else "test")
        assert source.labels is not None
        write_idx(
            folder / f"{part}-images-idx3-ubyte", np.stack([np.asarray(source.image(place)) for place in range(count)])
        )
        write_idx(folder / f"{part}-labels-idx1-ubyte", source.labels[:count].astype(np.uint8))
    return folder


def cifar10_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """CIFAR-10's layout with ten noisy pictures a file, whose checksums torchvision is told; the first file's pictures, (10, 3, 32, 32)."""
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    chance = np.random.default_rng(0)
    pixels = {
        name: chance.integers(0, 256, (10, 3, 32, 32), np.uint8)
        for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]
    }

    def written(name: str, content: object) -> str:
        (inner / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((inner / name).read_bytes()).hexdigest()

    sums = {
        name: written(name, {"data": array.reshape(10, -1), "labels": list(range(10))})
        for name, array in pixels.items()
    }
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    names = [f"class {index}" for index in range(10)]
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": written("batches.meta", {"label_names": names})})
    return pixels["data_batch_1"]


def opened(script: Callable[[str], ModuleType], folder: Path, val_fraction: float = 0.25, seed: int = 0) -> Any:
    data = script("_train_data")
    return data.open_data(data.Request(folder, val_fraction, seed, False))


# --- sources ---


def test_a_tree_with_train_and_val_is_numbered_by_the_training_folders(script: Any, tmp_path: Path) -> None:
    tree(tmp_path / "train", 3)
    tree(tmp_path / "val", 2, "test", CLASSES[1:])
    data = opened(script, tmp_path)
    assert data.classes == CLASSES
    assert data.held_out_name == "validation"
    assert data.training.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.held_out.labels.tolist() == [1, 1, 2, 2]
    names = sorted(path.name for path in (tmp_path / "val" / "Sneaker").iterdir())
    assert data.held_out.source.image(0).tobytes() == Image.open(tmp_path / "val" / "Sneaker" / names[0]).tobytes()


def test_a_tree_without_val_is_split_evenly_and_by_the_seed(script: Any, tmp_path: Path) -> None:
    folder = tree(tmp_path / "all", 8)
    pictures = {path.read_bytes() for path in folder.rglob("*.png")}
    assert len(pictures) == 24

    def pixels(part: Any) -> list[bytes]:
        return [part.source.image(place).tobytes() for place in range(part.source.count)]

    data, again, other = (opened(script, folder, seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(data.training.labels).tolist() == [6, 6, 6]
    assert torch.bincount(data.held_out.labels).tolist() == [2, 2, 2]
    assert not set(pixels(data.training)) & set(pixels(data.held_out))
    assert pixels(data.held_out) == pixels(again.held_out) != pixels(other.held_out)


def test_idx_files_are_fashion_mnist_only_if_their_labels_are(script: Any, tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "idx", 40, 30)
    data = opened(script, folder)
    assert data.classes == FASHION_MNIST_CLASSES
    assert data.training.pixels.shape == (40, 1, 28, 28)
    assert data.held_out.labels.tolist() == read_idx(folder / "t10k-labels-idx1-ubyte").tolist()
    labels = read_idx(folder / "train-labels-idx1-ubyte")
    write_idx(folder / "train-labels-idx1-ubyte", labels[::-1].copy())
    assert opened(script, folder).classes == tuple("0123456789")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_folder_or_the_one_around_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    first = cifar10_folder(tmp_path, monkeypatch)
    data = opened(script, tmp_path / inner)
    assert data.training.pixels.shape == (50, 3, 32, 32)
    assert np.array_equal(data.training.pixels[:10].numpy(), first)
    assert data.held_out.labels.tolist() == list(range(10))
    assert data.classes[3] == "class 3"
    assert np.array_equal(np.asarray(data.training.source.image(2)), first[2].transpose(1, 2, 0))


def test_a_damaged_cifar10_and_one_that_cannot_be_fetched_are_one_line(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10_folder(tmp_path / "here", monkeypatch)
    (tmp_path / "here" / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut short")
    ran = train("--data", "here")
    assert ran.code == 2
    assert "is incomplete or damaged; remove it and fetch it again with --download" in ran.error
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody listens there
    ran = train("--data", "nowhere", "--download")
    assert ran.code == 3
    assert "cannot fetch http://127.0.0.1:9/cifar-10-python.tar.gz" in ran.error
    assert "leave --download out" in ran.error


def _train_alone(folder: Path) -> None:
    tree(folder / "train", 2)


def _other_parts(folder: Path) -> None:
    for part in ("Train", "valid"):
        tree(folder / part, 2)


def _flat_parts(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part).mkdir()
        built_in("train").image(0).save(folder / part / "0.png")


def _strange_class(folder: Path) -> None:
    tree(folder / "train", 2, classes=CLASSES[:2])
    tree(folder / "val", 2)


def _stray_picture(folder: Path) -> None:
    tree(folder, 2)
    built_in("train").image(0).save(folder / "stray.png")


def _empty_class(folder: Path) -> None:
    tree(folder, 2)
    (folder / "Shirt").mkdir()


def _damaged_picture(folder: Path) -> None:
    tree(folder, 40)
    next((folder / "Bag").glob("*.png")).write_bytes(b"no picture")


def _labels_too_few(folder: Path) -> None:
    folder.rmdir()
    idx_folder(folder, 30, 20)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "train alone": (_train_alone, "has train but no val"),
    "parts of other names": (
        _other_parts,
        "expected train and val in data, each with a folder for each class, got Train, valid",
    ),
    "parts without classes": (
        _flat_parts,
        "expected train and val in data, each with a folder for each class, got train, val",
    ),
    "strange class": (_strange_class, "has classes that train lacks: Trouser"),
    "stray picture": (_stray_picture, "nothing beside, got pictures in it"),
    "empty class": (_empty_class, "got none in Shirt"),
    "one class": (lambda folder: tree(folder, 2, classes=["Bag"]), "expected at least two class folders"),
    "one picture a class": (lambda folder: tree(folder, 1), "one to train on and one to validate on"),
    "damaged picture": (_damaged_picture, "cannot read the picture"),
    "nothing": (lambda folder: None, "holds no pictures"),
    "no such folder": (lambda folder: folder.rmdir(), "is not a folder; give class folders"),
    "labels too few": (_labels_too_few, "and n labels, got (20, 28, 28) and (19,)"),
    "test files missing": (
        lambda folder: write_idx(folder / "train-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8)),
        "cannot read",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_unusable_pictures_are_one_line_that_says_what_is_wrong(train: Any, tmp_path: Path, broken: str) -> None:
    (tmp_path / "data").mkdir()
    make, message = BROKEN[broken]
    make(tmp_path / "data")
    ran = train("--data", "data", "--batch", 8, "--epochs", 1)
    assert ran.code == 2
    assert message in ran.error
    assert not (tmp_path / "build" / "train" / "best.pth").exists()


OPTIONS = {
    ("--model", "resnet2"): (2, "unknown model 'resnet2'; did you mean"),
    ("--freeze",): (2, "--freeze needs --weights"),
    ("--weights", "random"): (2, "leave the option out to train from scratch"),
    ("--weights", "gone.pth"): (2, "there is no file gone.pth"),
    ("--schedule", "linear"): (2, "is not one of 'onecycle', 'multistep', 'cosine'"),
    ("--image-size", "big"): (2, "expected --image-size as N or HxW"),
    ("--learning-rate", "-1"): (2, "--learning-rate"),
    ("--device", "cuda"): (3, "PyTorch sees no CUDA device"),
    ("--learning-rate", "1e30"): (1, "in epoch 1; lower --learning-rate (now 1e+30)"),
    ("--output", "data/Bag/0.png/x"): (2, "cannot make the folder"),
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_wrong_options_are_one_line_with_their_exit_code(train: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    if options[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    tree(tmp_path / "data", 8)
    (tmp_path / "data" / "Bag" / "0.png").write_bytes(next((tmp_path / "data" / "Bag").glob("*.png")).read_bytes())
    code, message = OPTIONS[options]
    ran = train("--data", "data", "--batch", 4, "--epochs", 2, *options)
    assert ran.code == code
    assert message in ran.error


def test_the_shipped_checkpoints_command_still_asks_for_its_recipe(script: Any) -> None:
    main = script("train")
    facts = json.loads((ASSETS / "resnet20.json").read_text())
    context = main.command.make_context("train", facts["command"].split()[2:])
    settings = main.settings_from_options(context.params)
    asked = {
        "epochs": settings.epochs,
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "seed": settings.data.seed,
    }
    assert asked == facts["recipe"]
    assert (settings.network.model, settings.network.weights, settings.optimizer, settings.schedule) == (
        "resnet20",
        None,
        "sgd",
        "onecycle",
    )
    assert settings.weight_decay == 5e-4


# --- batches ---


def test_pixels_are_shifted_and_mirrored_as_drawn(script: Any) -> None:
    chance = np.random.default_rng(0)
    images = chance.integers(1, 256, (5, 3, 6, 8), np.uint8)
    plain = Preprocess(None, (6, 8), "bilinear", True, (0.0, 0.5, 0.2), (1.0, 0.5, 0.3))
    pixels = script("_train_batches").Pixels(torch.from_numpy(images), torch.arange(5), plain, 2)
    places = torch.tensor([3, 0, 4])
    drawn = torch.tensor([[0, 2, 4], [4, 2, 1], [0, 0, 1]])
    ((inputs, labels),) = pixels.batches([(places, drawn)])
    assert labels.tolist() == [3, 0, 4]
    for place, (top, left, mirror), got in zip(places, drawn.T.tolist(), inputs, strict=True):
        padded = np.pad(images[place], ((0, 0), (2, 2), (2, 2)))
        expected = padded[:, top : top + 6, left : left + 8][:, :, :: -1 if mirror else 1].astype(np.float32) / 255
        scaled = (expected - np.array(plain.mean, np.float32)[:, None, None]) / np.array(plain.std, np.float32)[
            :, None, None
        ]
        np.testing.assert_allclose(got.numpy(), scaled, atol=1e-6)
    many = pixels.draw(1000, torch.Generator().manual_seed(0))
    assert [sorted(set(row.tolist())) for row in many] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]


def test_pictures_are_the_devices_own_when_judged_and_the_same_for_any_number_of_threads(
    script: Any, tmp_path: Path
) -> None:
    module, part = script("_train_batches"), opened(script, tree(tmp_path / "all", 8)).training
    enlarged = Preprocess(40, (32, 36), "bilinear", True, (0.3,), (0.4,))
    plan = [(torch.arange(5), None), (torch.arange(5, 9), None)]
    got = torch.cat([inputs for inputs, _ in module.Pictures(part, enlarged, 3).batches(plan)])
    assert np.array_equal(got.numpy(), enlarged.batch([part.source.image(place) for place in range(9)]))

    def augmented(workers: int, seed: int) -> Tensor:
        pictures = module.Pictures(part, enlarged, workers)
        generator = torch.Generator().manual_seed(seed)
        drawn = [(torch.arange(4) + first, pictures.draw(4, generator)) for first in range(0, 16, 4)]
        return torch.cat([inputs for inputs, _ in pictures.batches(drawn)])

    assert augmented(1, 0).equal(augmented(4, 0))
    assert not augmented(1, 0).equal(augmented(1, 1))
    assert augmented(1, 0).shape == (16, 1, 32, 36)


@pytest.mark.parametrize(("size", "aspect"), [((500, 300), 1.0), ((60, 90), 2.0), ((400, 10), 1.0), ((1, 1), 1.0)])
def test_a_cut_lies_in_the_picture_and_has_the_aspect_asked_for(
    script: Any, size: tuple[int, int], aspect: float
) -> None:
    module, chance = script("_train_batches"), random.Random(0)
    cuts = [module.random_cut(size, aspect, chance) for _ in range(300)]
    for left, top, right, bottom in cuts:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        if min(size) > 50:
            assert 0.7 < (right - left) / (bottom - top) / aspect < 1.4
            if aspect == 1:
                assert (right - left) * (bottom - top) >= 0.34 * size[0] * size[1]
    assert len(set(cuts)) == 1 or min(size) > 50


# --- the loop ---


class Signalling:
    """Examples whose `at`-th batch, counted over all epochs and judgements, comes with a SIGINT."""

    def __init__(self, inner: Any, at: int) -> None:
        self.inner, self.at, self.count = inner, at, inner.count
        self.draw = inner.draw

    def batches(self, plan: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.inner.batches(plan):
            self.at -= 1
            if self.at == 0:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def recipe(script: Any, optimizer: str, schedule: str, images: int) -> Any:
    return script("_train_loop").Recipe(
        model="tiny",
        classes=CLASSES,
        training_images=images,
        held_out_images=12,
        image=(1, 28, 28),
        weights=None,
        freeze=False,
        optimizer=optimizer,
        schedule=schedule,
        epochs=2,
        batch=8,
        learning_rate=0.05 if optimizer == "sgd" else 0.001,
        weight_decay=5e-4,
        seed=3,
    )


def fresh_run(script: Any, asked: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.1), CifarResNet(1, 1, 3))
    return script("_train_loop").new_run(asked, model, model, torch.device("cpu"), None)


def examples(script: Any, folder: Path, kind: str) -> tuple[Any, Any]:
    data, module = opened(script, folder), script("_train_batches")
    if kind == "pictures":
        return tuple(module.examples_of(part, GREY, 0, 2) for part in (data.training, data.held_out))
    pixels = [
        np.stack([np.asarray(part.source.image(place)) for place in range(part.source.count)])
        for part in (data.training, data.held_out)
    ]
    labels = (data.training.labels, data.held_out.labels)
    return tuple(
        module.Pixels(torch.from_numpy(one)[:, None], own, GREY, 2) for one, own in zip(pixels, labels, strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "optimizer", "schedule", "part", "at"),
    [
        ("pixels", "sgd", "onecycle", "training", 2),  # in the first epoch, before there is a checkpoint
        ("pixels", "adam", "cosine", "training", 6),  # in the second epoch
        ("pictures", "sgd", "multistep", "training", 4),  # the last step of an epoch
        ("pictures", "adam", "onecycle", "held_out", 1),  # while judging
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    script: Any, tmp_path: Path, kind: str, optimizer: str, schedule: str, part: str, at: int
) -> None:
    loop = script("_train_loop")
    training, held_out = examples(script, tree(tmp_path / "all", 16), kind)
    asked = recipe(script, optimizer, schedule, training.count)
    (tmp_path / "whole").mkdir()
    whole = fresh_run(script, asked)
    loop.train(asked, whole, training, held_out, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    stopped = fresh_run(script, asked)
    interrupted = {"training": training, "held_out": held_out}
    interrupted[part] = Signalling(interrupted[part], at)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(loop.Stopped) as caught:
        loop.train(asked, stopped, interrupted["training"], interrupted["held_out"], tmp_path / "parts")
    assert caught.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert len(stopped.history) < 2
    torch.manual_seed(99)
    resumed = fresh_run(script, asked)
    loop.train(asked, resumed, training, held_out, tmp_path / "parts")
    assert resumed.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name
    best = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in ("whole", "parts")]
    assert all(tensor.equal(best[1][name]) for name, tensor in best[0].items())


def test_the_best_checkpoint_is_that_of_the_best_epoch(script: Any, tmp_path: Path) -> None:
    loop = script("_train_loop")
    training, held_out = examples(script, tree(tmp_path / "all", 16), "pixels")
    asked = recipe(script, "sgd", "onecycle", training.count)
    run = fresh_run(script, asked)
    loop.train(asked, run, training, held_out, tmp_path)
    run.model.load_state_dict({**run.model.state_dict(), **torch.load(tmp_path / "best.pth", weights_only=True)})
    scores = [one["accuracy"] for one in run.history]
    assert len(scores) == 2
    assert loop.accuracy(run, held_out, lambda: None) == max(scores)
    (tmp_path / "best.pth").unlink()
    worse = [{"loss": 0.0, "training_accuracy": 1.0, "accuracy": 1.01}]
    run = fresh_run(script, asked)
    run.history.extend(worse)
    (tmp_path / "checkpoint.pt").unlink()
    loop.train(asked, run, training, held_out, tmp_path)
    assert not (tmp_path / "best.pth").exists()


def test_another_recipes_checkpoint_and_a_damaged_one_are_refused(script: Any, tmp_path: Path) -> None:
    loop = script("_train_loop")
    training, held_out = examples(script, tree(tmp_path / "all", 16), "pixels")
    asked, other = (recipe(script, "sgd", schedule, training.count) for schedule in ("cosine", "multistep"))
    loop.train(asked, fresh_run(script, asked), training, held_out, tmp_path)
    with pytest.raises(PlanError, match=r"is of another run \(schedule cosine instead of multistep\); remove it"):
        loop.train(other, fresh_run(script, other), training, held_out, tmp_path)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint", pickle.dumps({"recipe": print})):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(BadInput, match="cannot be read as a checkpoint"):
            loop.train(asked, fresh_run(script, asked), training, held_out, tmp_path)


def test_the_schedules_are_those_of_the_paper(script: Any) -> None:
    def rates(schedule: str) -> list[float]:
        run = fresh_run(script, recipe(script, "sgd", schedule, 160))
        found = []
        for _ in range(40):
            found.append(run.schedule.get_last_lr()[0])
            run.optimizer.step()
            run.schedule.step()
        return found

    assert np.allclose(rates("multistep"), [0.05] * 20 + [0.005] * 10 + [0.0005] * 10)
    assert np.allclose(rates("cosine"), 0.05 * (1 + np.cos(np.pi * np.arange(40) / 40)) / 2)
    assert max(rates("onecycle")) == pytest.approx(0.05, rel=0.02)


def test_a_failed_write_leaves_the_old_file_alone(script: Any, tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_text("old")

    def half(path: Path) -> None:
        path.write_text("ha")
        raise OSError("no space left on device")

    with pytest.raises(BadInput, match="no space left"):
        script("_train_loop").written(tmp_path / "best.pth", half)
    assert (tmp_path / "best.pth").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]


# --- the command ---


def test_ctrl_c_stops_after_the_step_and_the_same_command_goes_on(train: Any, tmp_path: Path) -> None:
    idx_folder(tmp_path / "idx", 64, 40)
    options = ["--data", "idx", "--epochs", 8, "--batch", 32, "--output"]
    command = [sys.executable, str(SCRIPTS / "train.py"), *map(str, options), "parts"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (tmp_path / "parts" / "checkpoint.pt").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert not (tmp_path / "parts" / "resnet20.safetensors").exists()
    assert train(*options, "parts").code == 0
    assert train(*options, "whole").code == 0
    whole, parts = ((tmp_path / name / "resnet20.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_fine_tuning_replaces_the_head_and_a_frozen_backbone_stays_as_it_was(train: Any, tmp_path: Path) -> None:
    tree(tmp_path / "data", 30)
    ran = train(
        "--data", "data", "--weights", "default", "--freeze", "--batch", 12, "--epochs", 4, "--learning-rate", 0.01
    )
    assert ran.code == 0, ran.err
    state, shipped = (
        load_file(path) for path in (tmp_path / "build/train/resnet20.safetensors", ASSETS / "resnet20.safetensors")
    )
    assert state["fc.weight"].shape == (3, 64)
    backbone = [name for name in shipped if not name.startswith("fc.")]
    assert all(state[name].equal(shipped[name]) for name in backbone)
    facts = json.loads((tmp_path / "build/train/resnet20.json").read_text())
    assert facts["validation_accuracy"] > 0.9
    assert facts["recipe"]["optimizer"] == "adam"
    ran = train("--data", "data", "--weights", "build/train/best.pth", "--batch", 12, "--epochs", 1, "--output", "more")
    assert ran.code == 0, ran.err
    assert not load_file(tmp_path / "more/resnet20.safetensors")["conv1.weight"].equal(shipped["conv1.weight"])


def test_pictures_of_another_size_and_colour_say_how_to_export(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10_folder(tmp_path / "data", monkeypatch)
    ran = train("--data", "data", "--batch", 25, "--epochs", 1, "--schedule", "cosine")
    assert ran.code == 0, ran.err
    facts = json.loads((tmp_path / "build/train/resnet20.json").read_text())
    assert facts["recipe"]["image"] == [3, 32, 32]
    mean, std = (",".join(f"{value:g}" for value in facts[name]) for name in ("mean", "std"))
    last = ran.out.splitlines()[-1]
    given = "resnet-export resnet20 --weights build/train/best.pth --labels build/train/class_indices.json --image-size 32x32"
    assert last == f"{given} --mean {mean} --std {std}"
    assert 0.45 < min(facts["mean"]) < 0.55


def test_a_trained_network_is_exported_and_names_held_out_pictures(
    train: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "tree", 100)
    held_out = tree(tmp_path / "held-out", 20, "test")
    options = ["--optimizer", "adam", "--learning-rate", 0.003, "--batch", 16, "--epochs", 6]
    ran = train("--data", "tree", *options, "--output", "out")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "out/class_indices.json").read_text()) == {"0": "Bag", "1": "Sneaker", "2": "Trouser"}
    words = ran.out.splitlines()[-1].split()
    assert words == ["resnet-export", "resnet20", "--weights", "out/best.pth", "--labels", "out/class_indices.json"]
    exported = run(*words[1:], f"--{RUNNABLE}", "--data", "tree", "--output", "bundle", "--quiet")
    assert exported.code == 0, exported.err
    pictures = sorted(held_out.rglob("*.png"))
    deploy = functools.partial(run_main, deploy_cli.main, capsys=capsys, monkeypatch=monkeypatch)
    found = deploy(arguments=["run", "bundle", *pictures, "--json"]).json
    right = [found[str(path)][0]["label"] == path.parent.name for path in pictures]
    assert len(right) == 60
    assert np.mean(right) >= 0.9


def test_the_models_own_preprocessing_is_what_a_tree_is_trained_with(script: Any, tmp_path: Path) -> None:
    begin = script("_train_start")
    data = opened(script, tree(tmp_path / "all", 4))
    spec = find_model("resnet20")
    begun = begin.start(begin.Network("resnet20", None, False, None), data, 0)
    assert begun.preprocess == preprocess(spec)
    assert begun.trained is begun.module
    wide = begin.start(begin.Network("resnet18", None, False, (64, 64)), data, 0)
    assert wide.preprocess.crop == (64, 64)
    assert wide.preprocess.channels == 1
    assert begin.export_options("resnet18", wide.preprocess) == ["--image-size", "64x64"]
    assert wide.module.get_parameter("conv1.weight").shape[1] == 1
    assert wide.module.get_parameter("fc.weight").shape[0] == 3


def test_a_factorys_network_gets_a_head_for_the_classes_and_keeps_its_channels(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = script("_train_start")
    data = opened(script, tree(tmp_path / "all", 4))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "homemade.py").write_text(
        "from exporter.models.sources.cifar import CifarResNet\n\ndef net():\n    return CifarResNet(1, 3, 7)\n"
    )
    begun = begin.start(begin.Network("homemade:net", None, False, (32, 32)), data, 0)
    assert begun.module.get_parameter("fc.weight").shape == (3, 64)
    assert begun.preprocess.shape == (3, 32, 32)


def test_a_network_that_cannot_take_the_pictures_or_gives_no_logits_is_refused(script: Any) -> None:
    begin = script("_train_start")
    spec = find_model("resnet20")
    with pytest.raises(BadInput, match="resnet20 takes no pictures of 1x28x28: .*; try another --image-size"):
        begin._outputs(nn.Sequential(nn.Flatten(), nn.Linear(10, 3)), GREY, spec)
    with pytest.raises(BadInput, match="it is no classifier"):
        begin._outputs(nn.Conv2d(1, 3, 3), GREY, spec)
    with pytest.raises(BadInput, match="expected a last layer of 5 outputs to replace"):
        begin._head(CifarResNet(1, 1, 10), 5, 3, spec)
