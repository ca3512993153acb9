"""`scripts/train.py` as a command: stopping changes nothing, and its checkpoint goes straight into `resnet-export`."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_main
from rounding import RUNNABLE
from safetensors.torch import load_file
from torch import nn
from train_fixtures import (  # noqa: F401  # pytest finds them by their names
    GREY,
    SCRIPTS,
    cifar10_folder,
    idx_folder,
    one_thread_fixture,
    opened,
    script_fixture,
    train_fixture,
    tree,
)

from exporter.cli import deploy as deploy_cli
from exporter.models.registry import find_model
from exporter.models.sources.cifar import ASSETS, CifarResNet, preprocess
from runtimes.errors import BadInput

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
