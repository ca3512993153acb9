"""`resnet-deploy build`: real builds by TensorRT-RTX, which needs no GPU for them; and every way they can go wrong."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter import ExportPlan, export
from exporter.cli import _build
from exporter.cli._common import status
from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions, tensorrt_rtx
from exporter.engines.layers import EngineLayer, check_precision, layer_facts, layers_from_inspector
from runtimes import Bundle
from runtimes.errors import BackendUnavailable, BuildError, BundleError, PlanError, UnknownName
from runtimes.nvidia.engine_file import EngineFacts, facts_of
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import KEY_VARIABLE
from runtimes.specs import BatchRange

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
TARGETS = ("--backend", "tensorrt-rtx", "--target", "sm86,sm120")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test, without engines."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def run(deploy: Any) -> Any:
    return deploy


def changed(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def with_onnx(bundle: Path, data: bytes) -> None:
    """Put another graph into the bundle, and its sha256 into the manifest."""
    (bundle / "model.onnx").write_bytes(data)
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    changed(bundle, lambda document: document["files"].update({"model.onnx": facts}))


def engines(bundle: Path) -> list[str]:
    folder = bundle / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def quiet(step: str, done: int = 0, total: int = 0) -> None:
    pass


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
        with_onnx(bundle, model.SerializeToString())
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


def test_tensorrt_itself_is_asked_for_with_the_way_to_get_it(run: Any, bundle: Path) -> None:
    shown = run("build", bundle)
    assert shown.code == 3
    assert "needs the package 'tensorrt'" in shown.error
    assert "--system-site-packages" in shown.error


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "sm87"], 2, "unknown target 'sm87'; did you mean sm"),
        (["--target", "x"], 2, "unknown target 'x'; choose from sm120"),
        (["--dla", "0"], 2, "no DLA; leave it out"),
        (["--timing-cache", "cache.bin"], 2, "times none; leave it out"),
        (["--version-compatible"], 2, "leave it out"),
        (["--hardware-compatible", "ampere-plus"], 2, "every GPU with --target"),
        (["--strip-weights"], 2, "needs a GPU"),
        (["--workspace", "0"], 2, "--workspace"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_it_cannot_take_are_refused_and_nothing_is_left(
    run: Any, bundle: Path, options: list[str], code: int, said: str
) -> None:
    shown = run("build", bundle, "--backend", "tensorrt-rtx", *options)
    assert shown.code == code
    assert said in shown.error
    assert engines(bundle) == []


def test_stripping_does_not_go_with_int8(bundle: Path) -> None:
    changed(bundle, lambda document: document.update(precision="int8"))
    with pytest.raises(PlanError, match="--strip-weights does not go with int8"):
        BuildPlan(Bundle.open(bundle), "tensorrt", BuildOptions(strip_weights=True))


def test_a_bundle_that_promises_more_than_its_graph_is_refused_and_accepted_when_told(run: Any, bundle: Path) -> None:
    changed(bundle, lambda document: document.update(precision="int8"))
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert (
        "the bundle promises int8, but 21 of its convolutions run otherwise (21 fp16): conv1, layer1.0.conv1"
        in shown.error
    )
    assert "--allow-fallback-layers" in shown.error
    assert engines(bundle) == []
    accepted = run("build", bundle, *TARGETS, "--allow-fallback-layers", "--json").json
    assert len(accepted["layers"]["fallback"]) == 21


def quantized_by_onnxruntime(bundle: Path, original: Bundle, **options: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches = iter([{"input": np.load(bundle / "golden.npz")["inputs"][:4]}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(original.file("model.onnx"), bundle.parent / "theirs.onnx", Reader(), **options)
    return (bundle.parent / "theirs.onnx").read_bytes()


def test_a_graph_that_tensorrt_refuses_is_named_by_node_with_the_remedy(
    run: Any, bundle: Path, shipped_bundle: Any
) -> None:
    with_onnx(bundle, quantized_by_onnxruntime(bundle, shipped_bundle("fp32")))
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "TensorRT refuses model.onnx at " in shown.error
    assert "export it with resnet-export --int8" in shown.error
    assert engines(bundle) == []


def test_a_bias_of_another_type_is_named_by_its_node(run: Any, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.0.conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias).astype(np.float32), bias.name))
    with_onnx(bundle, model.SerializeToString())
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "layer1.0.conv1 (Conv)" in shown.error
    assert "its types are mixed; export it again with resnet-export" in shown.error


@pytest.mark.parametrize("data", [b"", b"rubbish" * 100])
def test_a_model_file_that_is_none_is_a_build_error(run: Any, bundle: Path, data: bytes) -> None:
    with_onnx(bundle, data)
    shown = run("build", bundle, *TARGETS)
    assert shown.code == 1
    assert "TensorRT refuses model.onnx" in shown.error
    assert engines(bundle) == []


def test_inputs_that_the_manifest_does_not_know_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    wrong = replace(
        opened, manifest=replace(opened.manifest, inputs=(replace(opened.manifest.inputs[0], name="pixels"),))
    )
    with pytest.raises(BuildError, match="expected the inputs pixels, as the manifest says, got input"):
        build_engine(BuildPlan(wrong, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)


def test_a_batch_range_that_the_graph_cannot_take_is_refused(exported: Path, tmp_path: Path) -> None:
    fixed = export(
        ExportPlan("resnet20", tmp_path / "fixed", precision="fp16", batch=BatchRange(4, 4, 4), reference=False)
    ).folder
    opened = Bundle.open(fixed)
    wrong = replace(opened, manifest=replace(opened.manifest, batch=BatchRange(1, 2, 8)))
    with pytest.raises(BuildError, match="the engine could not be built: .*export it again with --batch"):
        build_engine(BuildPlan(wrong, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)
    assert build_engine(
        BuildPlan(opened, "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet
    ).facts.batch == BatchRange(4, 4, 4)


def test_an_unknown_builder_is_told_the_known_ones(bundle: Path) -> None:
    with pytest.raises(UnknownName, match="unknown builder 'tensorrt_x'"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt_x"), quiet)


def test_a_parser_too_old_for_the_opset_is_refused_with_the_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(bundle, lambda document: document.update(opset=22, precision="bf16"))
    monkeypatch.setattr("exporter.engines.build.NEWEST_OPSETS", {"tensorrt-rtx": ((99, 0), 20)})
    with pytest.raises(BackendUnavailable, match=r"needs opset 22 \(bf16\), and .* reads none above 20; update"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt-rtx"), quiet)


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


def test_a_bundle_that_cannot_be_written_to_says_so(bundle: Path) -> None:
    (bundle / "engines").write_text("a file where the folder should be")
    with pytest.raises(BundleError, match="cannot write .*engines"):
        build_engine(BuildPlan(Bundle.open(bundle), "tensorrt-rtx", BuildOptions(targets=("sm86",))), quiet)


def test_a_device_needs_neither_torch_nor_onnx_nor_onnxruntime(bundle: Path, tmp_path: Path) -> None:
    """In an environment that has only what the base install brings, beside TensorRT; and with a hook that forbids the others."""
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


# --- the proof of precision, read off TensorRT's inspector ---


def inspected(style: int, *, conv: str = "Int8", linear: str = "Half") -> str:
    """An engine's layers as TensorRT 10 or 11 tells them."""

    def tensor(words: str) -> dict[str, object]:
        long = {
            "Int8": "Thirty-two wide channel vectorized row major Int8 format",
            "Half": "Row major linear FP16 format",
            "Float": "Row major linear FP32",
        }
        return (
            {"Name": "t", "Format/Datatype": long[words]}
            if style == 10
            else {"Name": "t", "Format": "Linear", "Datatype": words}
        )

    return json.dumps(
        {
            "Layers": [
                {
                    "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
                    "LayerType": "Reformat",
                    "Inputs": [tensor("Float")],
                },
                {
                    "Name": "conv1.weight + conv1 + relu",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor(conv)],
                    "Metadata": "[ONNX Layer: conv1]",
                },
                {
                    "Name": "layer1.0.conv1 + layer1.0.add",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor(conv), tensor("Half")],
                    "Metadata": "[ONNX Layer: layer1.0.conv1]\x1e[ONNX Layer: layer1.0.add]",
                },
                {
                    "Name": "fc",
                    "LayerType": "CaskGemmMatrixMultiply",
                    "Inputs": [tensor(linear)],
                    "Metadata": "[ONNX Layer: fc]",
                },
            ]
        }
    )


@pytest.mark.parametrize("style", [10, 11])
def test_the_inspectors_layers_are_read_in_both_dialects(style: int) -> None:
    layers = layers_from_inspector(inspected(style))
    assert layers[1] == EngineLayer("CaskConvolution", ("int8",), frozenset({"conv1", "conv1.weight", "relu"}))
    facts = layer_facts(layers, ("conv1", "layer1.0.conv1"), "int8")
    assert facts.convolutions == {"int8": 2}
    assert facts.kernels == {
        "CaskConvolution": {"int8": 2},
        "CaskGemmMatrixMultiply": {"fp16": 1},
        "Reformat": {"fp32": 1},
    }
    check_precision(facts, "int8")


@pytest.mark.parametrize("style", [10, 11])
def test_convolutions_that_fell_back_are_named(style: int) -> None:
    facts = layer_facts(layers_from_inspector(inspected(style, conv="Half")), ("conv1", "layer1.0.conv1"), "int8")
    with pytest.raises(
        BuildError, match=r"promises int8, but 2 of its convolutions run otherwise \(2 fp16\): conv1, layer1.0.conv1"
    ):
        check_precision(facts, "int8")


def test_a_convolution_that_no_layer_names_is_unknown_and_not_taken_on_trust() -> None:
    facts = layer_facts(layers_from_inspector(inspected(10)), ("conv1", "lost"), "int8")
    assert facts.convolutions == {"int8": 1, "unknown": 1}
    with pytest.raises(BuildError, match="lost"):
        check_precision(facts, "int8")


@pytest.mark.parametrize("information", ["", "{}", "null", '{"Layers": ["conv1", "fc"]}'])
def test_an_inspector_that_tells_nothing_is_an_error(information: str) -> None:
    with pytest.raises(BuildError, match="its precision is unknown"):
        layers_from_inspector(information)
