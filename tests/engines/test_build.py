"""`resnet-deploy build`: real builds by TensorRT-RTX, which needs no GPU for them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from builds import TARGETS, engines
from own_bundle import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names
from spoilt import replace_file

from exporter.cli import _build
from exporter.cli._common import status
from exporter.engines.builders import tensorrt_rtx
from runtimes import Bundle
from runtimes.nvidia.engine_file import EngineFacts, facts_of
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import KEY_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("torch", "torchvision", "onnx", "onnxruntime", "onnxsim")
DEVICE_PACKAGES = (
    "numpy",
    "pillow",
    "click",
    "rich",
    "msgspec",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "cuda-bindings",
    "cuda-pathfinder",
)
RTX = ("tensorrt_rtx_cu13", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs")


def test_an_engine_and_its_sidecar_are_written_with_the_proof_of_precision(run: Any, bundle: Path) -> None:
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 0
    name = f"tensorrt-rtx-{tensorrt_rtx.VERSION}-sm86+sm120-b1-8-32"
    assert engines(bundle) == [f"{name}.engine", f"{name}.json"]
    assert "convolutions: 21 fp16" in shown.out
    assert "not checked" in shown.out
    facts = facts_of(bundle / "engines" / f"{name}.engine")
    assert (facts.backend, facts.version, facts.targets, facts.typing, facts.device) == (
        "tensorrt-rtx",
        tensorrt_rtx.VERSION,
        ("sm86", "sm120"),
        "strong",
        None,
    )
    assert facts.layers.convolutions == {"fp16": 21}
    assert facts.layers.fallback == ()
    assert sum(count for types in facts.layers.kernels.values() for count in types.values()) >= 21
    assert facts.onnx_sha256 == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert (bundle / "engines" / f"{name}.engine").read_bytes()[:4] == b"vtrt"  # a pure plan: nothing before it
    Bundle.open(bundle)  # engines do not spoil a bundle


def test_a_build_again_is_a_cache_hit_in_under_a_second(run: Any, bundle: Path) -> None:
    first = run("build", bundle, *TARGETS, "--json").json
    began = time.perf_counter()
    again = run("build", bundle, *TARGETS, "--json").json
    assert time.perf_counter() - began < 1
    assert (first["cached"], again["cached"]) == (False, True)
    assert again["key"] == first["key"]
    assert run("build", bundle, *TARGETS, "--json", "--force").json["cached"] is False


@pytest.mark.parametrize("what", ["onnx", "targets", "workspace", "engine", "sidecar"])
def test_whatever_changes_the_engine_builds_it_again(run: Any, bundle: Path, what: str) -> None:
    first = run("build", bundle, *TARGETS, "--json").json
    options: tuple[object, ...] = TARGETS
    engine = Path(first["engine"])
    if what == "onnx":
        model = onnx.load(bundle / "model.onnx")
        model.producer_name = "another"
        replace_file(bundle, "model.onnx", model.SerializeToString())
    elif what == "targets":
        options = (*TARGETS[:3], "sm89")
    elif what == "workspace":
        options = (*TARGETS, "--workspace", 64)
    elif what == "engine":
        engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    else:
        sidecar_of(engine).unlink()
    again = run("build", bundle, *options, "--json").json
    assert again["cached"] is False
    assert (again["key"] != first["key"]) == (what in ("onnx", "targets", "workspace"))
    facts_of(Path(again["engine"]))


def test_inspect_shows_an_engine_without_any_tensorrt(run: Any, bundle: Path) -> None:
    engine = run("build", bundle, *TARGETS, "--json").json["engine"]
    shown = run("inspect", engine)
    assert shown.code == 0
    for said in ("tensorrt-rtx", "sm86, sm120", "1:8:32", "21 fp16", "strong typing"):
        assert said in shown.out, said
    assert run("inspect", engine, "--json").json["targets"] == ["sm86", "sm120"]


@pytest.mark.parametrize("name", ["weights.onnx", "random", "empty"])
def test_inspect_refuses_what_is_no_engine(run: Any, bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(
        {"weights.onnx": (bundle / "model.onnx").read_bytes(), "random": bytes(range(1, 200)), "empty": b""}[name]
    )
    shown = run("inspect", path)
    assert shown.code == 2
    assert "is no TensorRT engine" in shown.error
    assert {
        "weights.onnx": "looks like an ONNX model",
        "random": "first bytes are not a plan's",
        "empty": "it is empty",
    }[name] in shown.error


def test_without_targets_it_is_built_for_all_that_the_library_has(run: Any, bundle: Path) -> None:
    assert run("build", bundle, "--backend", "tensorrt-rtx", "--json").json["targets"] == list(
        tensorrt_rtx.target_names()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_build_and_leaves_nothing(
    run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    steps: list[str] = []

    class Interrupting:
        def __init__(self, *, quiet: bool) -> None:
            self.inner = status(quiet=True)

        def __enter__(self) -> Callable[..., None]:
            self.inner.__enter__()
            return self.say

        def __exit__(self, *arguments: object) -> None:
            self.inner.__exit__(None, None, None)

        def say(self, step: str, done: int = 0, total: int = 0) -> None:
            steps.append(step)
            if step == "build: optimizing graph" and done == 0:
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, number)
                time.sleep(0.3)  # the main thread has the signal now

    monkeypatch.setattr(_build, "status", Interrupting)
    before = [(one, signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        shown = run("build", bundle, *TARGETS)
    finally:
        for one, handler in before:
            signal.signal(one, handler)
    assert shown.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "build: timing tactics" not in steps, "the builder went on"
    assert engines(bundle) == []


def test_a_device_needs_neither_torch_nor_onnx_nor_onnxruntime(bundle: Path, tmp_path: Path) -> None:
    """The environment has only TensorRT and what the base install brings, and a hook forbids the others."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "device"], check=True)
    (site,) = (tmp_path / "device" / "lib").glob("python*/site-packages")
    for name in (*DEVICE_PACKAGES, *RTX):
        distribution = importlib.metadata.distribution(name)
        for top in {
            file.parts[0] for file in distribution.files or () if not file.parts[0].startswith((".", "__pycache__"))
        }:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    forbid = f"import sys; sys.modules.update(dict.fromkeys({FORBIDDEN!r}))"  # an import of None fails
    for arguments in (["build", str(bundle), *TARGETS], ["inspect", str(bundle)]):
        code = f"{forbid}; sys.argv = {['resnet-deploy', *arguments]!r}; from exporter.cli.deploy import main; main()"
        done = subprocess.run(
            [tmp_path / "device/bin/python", "-c", code],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), KEY_VARIABLE: os.environ[KEY_VARIABLE]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    (engine,) = (bundle / "engines").glob("*.engine")
    assert isinstance(facts_of(engine), EngineFacts)
