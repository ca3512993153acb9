"""`scripts/train.py`: how pictures become batches, and that a run that was stopped ends as one that was not."""

from __future__ import annotations

import os
import pickle
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_fixtures import CLASSES, GREY, one_thread_fixture, opened, script_fixture, tree  # noqa: F401  # pytest finds them by their names

from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput, PlanError
from runtimes.preprocess import Preprocess

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
        script("_train_loop").write_in_one_step(tmp_path / "best.pth", half)
    assert (tmp_path / "best.pth").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]
