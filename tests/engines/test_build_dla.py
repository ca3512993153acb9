"""`resnet-deploy build --dla`, on a "device" that stands in for CUDA and TensorRT."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from commands import Ran
from engine_bundles import BATCH
from engine_fixtures import cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt

from exporter.engines.layers import EngineLayer, layers_on_dla, layers_on_gpu, spread_over_dla
from runtimes import Manifest
from runtimes.board import jetpack
from runtimes.bundle_writing import write_manifest
from runtimes.manifest import Asked
from runtimes.specs import BatchRange


@pytest.fixture(name="api")
def api_fixture(cuda: StandinCuda) -> Iterator[StandinTensorRT]:
    """In place of a TensorRT that has DLA."""
    standin = StandinTensorRT(cuda, "11.4.1.7")
    with imported_as_tensorrt(standin):
        yield standin


@pytest.fixture
def static(proven: Path, manifest: Manifest) -> Path:
    """The bundle as if it were FP16, which the stand-in's inspector says of all that runs on DLA, at one batch size."""
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BatchRange(2, 2, 2), precision="fp16"))
    return proven


@pytest.fixture
def convolutions(folder: Path) -> list[str]:
    return [node.name for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dla_is_refused_for_what_it_cannot_compute(
    proven: Path, manifest: Manifest, precision: str, deploy: Callable[..., Ran]
) -> None:
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BatchRange(2, 2, 2), precision=precision))
    ran = deploy("build", proven, "--dla", "0")
    assert (
        ran.code,
        f"DLA computes in FP16 and INT8, and the bundle is {precision}; export it with --fp16" in ran.error,
    ) == (2, True)


def test_dla_needs_one_batch_size_and_a_core(
    static: Path, api: StandinTensorRT, manifest: Manifest, deploy: Callable[..., Ran]
) -> None:
    assert "finds no DLA on stand-in" in deploy("build", static, "--dla", "0").error
    api.dla_cores = 2
    assert "expected --dla below 2, got 2" in deploy("build", static, "--dla", "2").error
    facts = deploy("build", static, "--dla", "1", "--json").json
    assert (facts["options"], facts["checked"]) == ({"dla_core": 1}, True)
    assert Path(facts["engine"]).name == "tensorrt-11.4.1.7-sm87-b2-2-2-dla1.engine"
    assert api.last_config is not None
    assert (api.last_config.DLA_core, api.last_config.default_device_type.name) == (1, "DLA")
    assert api.BuilderFlag.GPU_FALLBACK in api.last_config.flags
    (static / "manifest.json").unlink()
    shutil.rmtree(static / "engines")
    write_manifest(static, replace(manifest, batch=BATCH, precision="fp16"))
    assert "DLA runs one batch size alone, the bundle has 2:3:4" in deploy("build", static, "--dla", "0").error


def test_what_fell_back_from_dla_to_the_gpu_is_listed(
    static: Path, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    api.dla_cores = 1
    ran = deploy("build", static, "--dla", "0")
    assert ran.code == 0, ran.err
    layers = deploy("inspect", next((static / "engines").glob("*-dla0.engine")), "--json").json["layers"]
    assert layers["convolutions"] == {"fp16": len(convolutions)}
    pooling = [node.name for node in onnx.load(static / "model.onnx").graph.node if node.op_type in api.off_dla]
    assert layers["on_gpu"] == pooling != []
    assert f"on the GPU and not on DLA: {', '.join(pooling)}" in ran.out
    assert set(convolutions) < set(layers["on_dla"])
    assert not set(layers["on_dla"]) & set(pooling)
    assert f"on DLA: {len(layers['on_dla'])} of {len(layers['on_dla']) + len(pooling)} layers" in ran.out


def test_convolutions_that_fell_back_from_dla_to_the_gpu_are_refused_unless_allowed(
    static: Path, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    api.dla_cores = 1
    api.off_dla.add(convolutions[1])
    ran = deploy("build", static, "--dla", "0")
    assert ran.code == 1
    assert (
        f"--dla 0 asks for DLA, but 1 of {len(convolutions)} convolutions do not run there: {convolutions[1]}; accept that with"
        in ran.error
    )
    assert not (static / "engines").exists()
    facts = deploy("build", static, "--dla", "0", "--allow-fallback-layers", "--json").json
    assert convolutions[1] in facts["layers"]["on_gpu"]
    api.off_dla.add("Conv")
    all_of_them = f"{len(convolutions)} of {len(convolutions)} convolutions do not run there: {convolutions[0]}, "
    assert all_of_them in deploy("build", static, "--dla", "0", "--force").error


def test_a_stretch_on_dla_holds_what_lies_between_its_ends_and_no_gpu_layer_names() -> None:
    order = ("input.cast", "conv1", "relu", "conv2", "side", "conv3", "pool", "fc", "bias")
    layers = [
        EngineLayer("Reformat", ("fp16",), frozenset({"conv1"}), "Reformatting CopyNode for conv1"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[conv1...conv3]}"),
        EngineLayer("CaskConvolution", ("fp16",), frozenset({"side"}), "side"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[fc + bias]}"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[nobody...knows]}"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[input.cast...nobody]}"),
    ]
    spread = spread_over_dla(layers, order)
    assert [set(layer.nodes) for layer in spread] == [
        {"conv1"},
        {"conv1", "relu", "conv2", "conv3"},
        {"side"},
        {"fc", "bias"},
        set(),
        set(),
    ]
    assert layers_on_gpu(spread, order) == ("side",)
    assert layers_on_dla(spread, order) == ("conv1", "relu", "conv2", "conv3", "fc", "bias")


def test_of_a_graph_written_for_dla_nothing_between_its_convolutions_may_fall_back(
    static: Path, manifest: Manifest, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    friendly = replace(manifest, batch=BatchRange(2, 2, 2), precision="fp16", asked=Asked(dla_friendly=True))
    (static / "manifest.json").unlink()
    write_manifest(static, friendly)
    api.dla_cores = 1
    names = [node.name for node in onnx.load(static / "model.onnx").graph.node]
    between = names[names.index(convolutions[0]) + 1]
    assert between not in convolutions
    facts = deploy("build", static, "--dla", "0", "--json").json  # what follows the last convolution may
    assert facts["layers"]["on_gpu"]
    api.off_dla.add(between)
    ran = deploy("build", static, "--dla", "0", "--force")
    assert (ran.code, f"layers run on the GPU: {between}; accept that with" in ran.error) == (1, True)
    accepted = deploy("build", static, "--dla", "0", "--allow-fallback-layers", "--json").json
    assert between in accepted["layers"]["on_gpu"]
    (static / "manifest.json").unlink()
    shutil.rmtree(static / "engines")
    write_manifest(static, replace(friendly, asked=Asked()))
    assert deploy("build", static, "--dla", "0").code == 0  # no promise was made of any other bundle


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.2.10", "11.3.0.4", "11.4.0.106"])
def test_a_tensorrt_that_is_known_to_have_no_dla_is_refused_before_it_parses(
    static: Path, cuda: StandinCuda, version: str, deploy: Callable[..., Ran]
) -> None:
    standin = StandinTensorRT(cuda, version)
    standin.dla_cores = 2
    with imported_as_tensorrt(standin):
        ran = deploy("build", static, "--dla", "0")
    assert (ran.code, f"TensorRT {version} has no DLA: it takes TensorRT up to 10.7" in ran.error) == (3, True)
    assert standin.calls["parse"] == 0


def test_a_board_that_is_known_to_have_none_is_refused(
    static: Path, api: StandinTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deploy: Callable[..., Ran]
) -> None:
    api.dla_cores = 2
    name = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    (tmp_path / "model").write_bytes(name.encode() + b"\0")
    monkeypatch.setattr(jetpack, "MODELS", (str(tmp_path / "model"),))
    ran = deploy("build", static, "--dla", "0")
    assert (ran.code, f"{name} has no DLA" in ran.error) == (3, True)


def test_an_int8_bundle_is_refused_on_the_dla_of_jetpack_6(
    static: Path, cuda: StandinCuda, manifest: Manifest, deploy: Callable[..., Ran]
) -> None:
    (static / "manifest.json").unlink()
    write_manifest(static, replace(manifest, batch=BatchRange(2, 2, 2), precision="int8"))
    with imported_as_tensorrt(StandinTensorRT(cuda, "10.3.0.30")):
        ran = deploy("build", static, "--dla", "0")
    assert (ran.code, "takes no Q/DQ pairs" in ran.error, "--fp16" in ran.error) == (3, True, True)


def test_what_dla_does_not_tell_is_no_proof_of_int8(
    static: Path, manifest: Manifest, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    (static / "manifest.json").unlink()
    write_manifest(static, replace(manifest, batch=BatchRange(2, 2, 2), precision="int8"))
    api.dla_cores = 1  # its stretches read FP16, whatever is computed in them
    ran = deploy("build", static, "--dla", "0")
    assert (ran.code, f"does not tell in which type DLA runs {len(convolutions)} of its" in ran.error) == (1, True)
    facts = deploy("build", static, "--dla", "0", "--allow-fallback-layers", "--json").json
    assert facts["layers"]["convolutions"] == {"hidden by DLA": len(convolutions)}
