"""Ctrl-C, SIGTERM and SIGKILL at any moment leave the old bundle or the new one; only SIGKILL may leave rubbish."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtimes import Bundle

PRELOADED = [
    "exporter.pipeline.export",
    "exporter.cli.export",
    "exporter.models.sources.cifar",
    "runtimes.backends.pytorch",
    "torch.onnx._internal.exporter._core",
]


def _export(output: str, seed: int) -> None:
    """In a child of a process that has loaded torch: a trial costs an export, not an import."""
    import sys

    from exporter.cli.export import main
    from runtimes import forks

    forks._inherited.clear()  # its parent has loaded torch, and computes nothing: no thread stays behind
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [
        "resnet-export",
        "resnet20",
        "--weights",
        "random",
        "--seed",
        str(seed),
        "--output",
        output,
        "--force",
        "--quiet",
    ]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main()


KINDS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def _trials(folder: Path, count: int, kinds: Sequence[signal.Signals] = KINDS) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = folder / "bundle"

    def started(seed: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_export, args=(str(output), seed))
        process.start()
        return process

    whole = started(0)
    whole.join()
    begin = time.monotonic()
    whole = started(0)
    whole.join()
    duration = time.monotonic() - begin
    assert whole.exitcode == 0
    shas = {Bundle.open(output).manifest.model.weights.sha256}
    chance = random.Random(7)
    for trial in range(count):
        kind = kinds[trial % len(kinds)]
        process = started(trial + 1)
        time.sleep(duration * (trial + chance.random()) / count)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it was faster than expected
            os.kill(process.pid, kind)
        process.join()
        bundle = Bundle.open(output)  # whole and verified, whichever it is
        assert set(bundle.manifest.files) == {"model.onnx", "reference.pt2", "golden.npz", "report.html"}
        shas.add(bundle.manifest.model.weights.sha256)
        leftovers = [path.name for path in folder.iterdir() if path != output]
        if kind == signal.SIGKILL:
            assert all(name.startswith(".bundle.partial-") for name in leftovers)
        elif process.exitcode != 0:
            assert process.exitcode in {130, 143, -signal.SIGINT, -signal.SIGTERM}
            if process.exitcode > 0:
                assert leftovers == []
    last = started(count + 1)
    last.join()
    assert last.exitcode == 0
    assert [path.name for path in folder.iterdir()] == ["bundle"]  # what killed runs left is swept up by the next


STOPPED = """
import os, signal
from torch import nn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts in the background with SIGINT ignored

def net():
    class Net(nn.Module):
        def forward(self, x):
            os.kill(os.getpid(), signal.{name})
            return x
    return Net()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_comes_while_a_strangers_network_runs_is_no_error_of_the_network(
    name: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(STOPPED.format(name=name))
    command = [sys.executable, "-m", "exporter.cli.export", "nets:net", "--image-size", "32", "--weights", "random"]
    done = subprocess.run([*command, "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "nets" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["nets.py"]


def test_an_interrupted_export_leaves_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    _trials(tmp_path, 5)


@pytest.mark.slow
def test_twenty_interruptions_leave_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    _trials(tmp_path, 20)


@pytest.mark.slow
def test_two_hundred_kills_leave_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    _trials(tmp_path, 200, (signal.SIGKILL,))
