"""`resnet-deploy build`, on a "device" that stands in for CUDA and TensorRT."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builds import quiet
from commands import Ran
from engine_bundles import BATCH, assert_right, leaks
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from numpy.typing import NDArray
from rounding import needs_rounding
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt
from tiny_answers import INPUT, OUTPUT, images

from exporter.engines.build import BuildPlan, build_engine
from runtimes import Bundle, Manifest, open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.bundle_writing import write_manifest
from runtimes.nvidia.engine_file import facts_of
from runtimes.nvidia.trust import KEY_VARIABLE
from runtimes.parity.golden import golden_report


@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_an_engine_is_built_proven_kept_and_then_runs(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran], reference: OnnxRuntime, version: str
) -> None:
    api = StandinTensorRT(cuda, version)
    with imported_as_tensorrt(api):
        ran = deploy("build", proven, "--json", "--timing-cache", proven.parent / "times")
        assert ran.code == 0, ran.err
        facts = ran.json
        assert (facts["checked"], facts["parity"]["ok"], facts["cached"]) == (True, True, False)
        assert (facts["version"], facts["targets"], facts["typing"]) == (version, ["sm87"], "strong")
        assert facts["layers"]["fallback"] == []
        assert set(facts["layers"]["convolutions"]) == {"fp32"}
        assert facts["parity"]["batches"] == [2, 3, 4]
        assert api.last_config is not None
        assert api.BuilderFlag.TF32 not in api.last_config.flags
        assert api.last_config.pools[api.MemoryPoolType.WORKSPACE] <= cuda.total_bytes // 2  # shared with the CPU
        assert deploy("build", proven, "--json").json["cached"]
        assert deploy("build", proven, "--force", "--timing-cache", proven.parent / "times").code == 0
        assert (proven.parent / f"times.{version}-sm87").read_text() == f'["{version}", 2]'
        with open_runtime(proven, "tensorrt") as runtime:
            assert_right(runtime.run({INPUT: images(7)})[OUTPUT], reference, images(7))
    assert leaks(cuda) == []


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, shipped_bundle: Any) -> Path:
    """The shipped ResNet-20 in INT8, to build engines into."""
    return Path(shutil.copytree(shipped_bundle("int8").folder, tmp_path_factory.mktemp("quantized") / "resnet20"))


@needs_rounding  # the stand-in computes with it
@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_an_int8_bundle_is_built_and_proven_in_int8(
    quantized: Path, cuda: StandinCuda, deploy: Callable[..., Ran], version: str
) -> None:
    with imported_as_tensorrt(StandinTensorRT(cuda, version)):
        facts = deploy("build", quantized, "--json").json
    assert (facts["checked"], facts["parity"]["ok"], facts["parity"]["batches"]) == (True, True, [1, 2, 4])
    assert (facts["layers"]["convolutions"], facts["layers"]["fallback"]) == ({"int8": 21}, [])


@pytest.mark.parametrize(
    "options",
    [["--version-compatible"], ["--strip-weights"], ["--hardware-compatible", "ampere-plus"], ["--workspace", "64"]],
)
def test_options_reach_the_builder_and_the_engine_is_proven_with_them(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], options: list[str]
) -> None:
    facts = deploy("build", proven, "--json", *options).json
    assert facts["checked"]
    config = api.last_config
    assert config is not None
    flags = {name for name in ("VERSION_COMPATIBLE", "STRIP_PLAN") if getattr(api.BuilderFlag, name) in config.flags}
    assert flags == {"--version-compatible": {"VERSION_COMPATIBLE"}, "--strip-weights": {"STRIP_PLAN"}}.get(
        options[0], set()
    )
    assert config.hardware_compatibility_level.name == (
        "AMPERE_PLUS" if options[0] == "--hardware-compatible" else "NONE"
    )
    assert (config.pools[api.MemoryPoolType.WORKSPACE] == 64 << 20) == (options[0] == "--workspace")


def test_an_engine_out_of_budget_is_not_kept(proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]) -> None:
    api.distort = lambda answer, _: -answer
    ran = deploy("build", proven, "--json")
    assert ran.code == 4
    assert "the engine's answers to the golden inputs are out of budget" in ran.error
    assert list((proven / "engines").iterdir()) == []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_that_fails_leaves_the_engine_before_it_as_it_was(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy("build", proven).code == 0
    before = content(proven / "engines")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def no_room(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    def fails(code: int) -> None:
        assert deploy("build", proven, "--force").code == code
        assert content(proven / "engines") == before
        with open_runtime(proven, "tensorrt") as runtime:
            assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)

    for call, code in (("build_serialized_network", 1), ("deserialize_cuda_engine", 1), ("execute_async_v3", 3)):
        api.fail(call, "an illegal access")
        fails(code)
    api.fail("deserialize_cuda_engine", "not this one", after=1)  # the inspector's is the first
    fails(3)
    with monkeypatch.context() as patch:
        patch.setattr("exporter.engines.build.golden_report", interrupt)
        assert deploy("build", proven, "--force").code == 130
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        assert deploy("build", proven, "--force").code == 1
    assert content(proven / "engines") == before
    api.distort = lambda answer, _: -answer
    assert deploy("build", proven, "--force").code == 4
    assert content(proven / "engines") == before


def test_until_a_new_engine_is_proven_the_one_before_it_is_found(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy("build", proven).code == 0
    before = content(proven / "engines")

    def looked_at(*arguments: Any) -> Any:
        assert {name: data for name, data in content(proven / "engines").items() if not name.startswith(".")} == before
        with open_runtime(proven, "tensorrt") as runtime:
            assert not runtime._loaded.path.name.startswith(".")  # type: ignore[attr-defined]  # an engine's
        return golden_report(*arguments)

    monkeypatch.setattr("exporter.engines.build.golden_report", looked_at)
    assert deploy("build", proven, "--force").code == 0
    assert content(proven / "engines").keys() == before.keys()


def test_engines_of_other_options_stand_beside_each_other_and_the_last_asked_for_is_taken(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    def taken() -> str:
        with open_runtime(proven, "tensorrt") as runtime:
            return runtime._loaded.path.name  # type: ignore[attr-defined, no-any-return]  # an engine's

    names = []
    for options in (
        [],
        ["--version-compatible"],
        ["--strip-weights", "--optimization-level", "5"],
        ["--workspace", "64"],
    ):
        names.append(Path(deploy("build", proven, "--json", *options).json["engine"]).name)
        for path in (proven / "engines").iterdir():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
        assert taken() == names[-1]
    stem = "tensorrt-11.4.0.106-sm87-b2-3-4"
    assert names == [
        f"{stem}.engine",
        f"{stem}-version-compatible.engine",
        f"{stem}-stripped-o5.engine",
        f"{stem}-w64.engine",
    ]
    again = deploy("build", proven, "--json", "--version-compatible").json
    assert again["cached"]
    assert taken() == names[1]


def test_what_a_build_that_was_killed_left_is_removed_by_a_later_one(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    engine = Path(deploy("build", proven, "--json").json["engine"])
    before = set(engine.parent.iterdir())
    killed = [
        engine.with_name(f"{name}")
        for name in (
            f".{engine.stem}.partial-77aa.engine",
            f".{engine.stem}.partial-77aa.check.json",
            f".{engine.stem}.partial-77aa.lock",
            f"..{engine.stem}.partial-77aa.cache.partial-88",
            f".{engine.name}.partial-99",  # the earlier engine, to be put back
        )
    ]
    for path in killed:
        path.write_bytes(b"half")
    alive = engine.with_name(f".{engine.stem}.partial-55bb.engine")
    alive.write_bytes(b"half")
    os.utime(alive, (1000, 1000))  # a board's clock begins in 1970, and jumps when it finds the network
    with alive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert deploy("build", proven, "--force").code == 0
    assert set(engine.parent.iterdir()) == before | {alive, alive.with_suffix(".lock")}


def test_the_engine_that_was_asked_for_last_is_loaded_whatever_the_clock_says(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    first = Path(deploy("build", proven, "--json").json["engine"])
    ahead = time.time() + 1e6
    os.utime(first, (ahead, ahead))  # it was built before the clock was put back
    second = Path(deploy("build", proven, "--json", "--optimization-level", "5").json["engine"])
    assert backend_class("tensorrt").file_of(Bundle.open(proven)) == second
    assert deploy("build", proven, "--json").json["cached"]
    assert backend_class("tensorrt").file_of(Bundle.open(proven)) == first


def test_an_engine_whose_sidecar_cannot_be_put_beside_it_leaves_the_earlier_pair(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Path(deploy("build", proven, "--json").json["engine"])
    before = {path: path.read_bytes() for path in engine.parent.iterdir()}
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".json" and ".partial-" in self.stem:
            raise OSError(5, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        ran = deploy("build", proven, "--force")
    assert (ran.code, "Input/output error" in ran.error) == (1, True)
    assert {path: path.read_bytes() for path in engine.parent.iterdir()} == before
    assert facts_of(engine).checked


def test_a_timing_cache_that_cannot_be_used_is_told_before_the_build(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"folder.{api.__version__}-sm87").mkdir()
    for file, message in (("nowhere/times", "there is no folder"), ("folder", "Is a directory")):
        ran = deploy("build", proven, "--timing-cache", tmp_path / file)
        assert (ran.code, message in ran.error) == (2, True), ran.err
    assert api.calls["build_serialized_network"] == 0

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("exporter.engines.timings.write_in_one_step", refuse)
    ran = deploy("build", proven, "--timing-cache", tmp_path / "times")
    assert (ran.code, "the engine is built and kept, but" in ran.error) == (2, True)
    assert deploy("build", proven, "--json").json["cached"]


@pytest.mark.parametrize("content", [b"\0garbage", b"[", b""])
def test_a_damaged_timing_cache_is_not_used_and_written_anew(
    content: bytes, proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / f"times.{api.__version__}-sm87").write_bytes(content)
    ran = deploy("build", proven, "--timing-cache", tmp_path / "times")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / f"times.{api.__version__}-sm87").read_bytes()) == [api.__version__, 1]


def test_engines_are_not_written_through_a_link(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (proven / "engines").symlink_to(tmp_path / "elsewhere")
    ran = deploy("build", proven)
    assert (ran.code, "is a link, so that engines would be written elsewhere; remove it" in ran.error) == (1, True)
    assert (api.calls["build_serialized_network"], [*(tmp_path / "elsewhere").iterdir()]) == (0, [])


def test_without_a_place_for_the_key_nothing_is_built(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "key"))
    ran = deploy("build", proven)
    assert (ran.code, f"set {KEY_VARIABLE} to a file" in ran.error) == (3, True)
    assert api.calls["build_serialized_network"] == 0


def test_an_engine_that_fails_on_the_spot_is_not_kept(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    api.fail("execute_async_v3", "an illegal access")
    ran = deploy("build", proven)
    assert (ran.code, ran.error) == (3, "error: TensorRT could not run a batch of 2: an illegal access")
    assert list((proven / "engines").iterdir()) == []


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def single(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not hold golden inputs and logits"),
        (b"junk" * 10, "does not hold golden inputs and logits"),
        (b"PK\x03\x04" + bytes(100), "does not hold golden inputs and logits"),
        (single(images(2)), "does not hold golden inputs and logits"),
        (archive(inputs=images(2)), "does not hold golden inputs and logits"),
        (archive(inputs=images(2), logits=np.zeros((3, 10))), "holds 2 inputs and 3 logits"),
        (archive(inputs=images(0), logits=np.zeros((0, 10))), "holds 0 inputs and 0 logits"),
    ],
    ids=["empty", "junk", "half an archive", "one array", "no logits", "unequal", "none"],
)
def test_a_bundle_whose_proof_cannot_be_read_keeps_no_engine(
    proven: Path, api: StandinTensorRT, manifest: Manifest, deploy: Callable[..., Ran], content: bytes, message: str
) -> None:
    (proven / "golden.npz").write_bytes(content)
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BATCH))
    ran = deploy("build", proven)
    assert (ran.code, api.calls["build_serialized_network"]) == (1, 1)
    assert message in ran.error
    assert ran.error.endswith("; export the bundle again")
    assert list((proven / "engines").iterdir()) == []


@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_convolutions_in_another_precision_are_refused_unless_allowed(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran], version: str
) -> None:
    api = StandinTensorRT(cuda, version)
    api.runs_as = {"stem.conv": "FP16"} | {
        node.name: "FP16" for node in onnx.load(proven / "model.onnx").graph.node if node.op_type == "Conv"
    }
    with imported_as_tensorrt(api):
        ran = deploy("build", proven)
        assert ran.code == 1
        assert "of its convolutions run otherwise" in ran.error
        assert "--allow-fallback-layers" in ran.error
        assert not (proven / "engines").exists()
        assert deploy("build", proven, "--allow-fallback-layers", "--json").json["layers"]["convolutions"].keys() == {
            "fp16"
        }


def test_an_early_tensorrt_10_that_refuses_typed_graphs_builds_with_weak_typing(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran]
) -> None:
    api = StandinTensorRT(cuda, "10.3.0.30")
    api.fail("parse", "In node 0: must be of same type")
    with imported_as_tensorrt(api):
        facts = deploy("build", proven, "--json").json
    assert (facts["typing"], facts["checked"]) == ("weak", True)
    assert "must be of same type" in facts["typed_refusal"]
    assert api.last_config is not None
    assert not {"FP16", "BF16", "INT8"} & api.last_config.flags  # the bundle is FP32


@pytest.mark.parametrize(("precision", "flags"), [("fp16", {"FP16"}), ("bf16", {"BF16"}), ("int8", {"FP16", "INT8"})])
def test_weak_typing_allows_what_the_bundles_precision_is_made_of_alone(
    proven: Path, cuda: StandinCuda, manifest: Manifest, precision: str, flags: set[str]
) -> None:
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BATCH, precision=precision))
    api = StandinTensorRT(cuda, "10.3.0.30")
    api.fail("parse", "In node 0: must be of same type")
    with imported_as_tensorrt(api):
        build_engine(BuildPlan(Bundle.open(proven), "tensorrt", allow_fallback_layers=True), quiet)
    assert api.last_config is not None
    assert api.last_config.flags & {"FP16", "BF16", "INT8"} == flags


def test_what_both_ways_of_typing_were_refused_for_is_told(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran]
) -> None:
    api = StandinTensorRT(cuda, "10.3.0.30")
    with imported_as_tensorrt(api):
        api.fail("parse", "In node 0: must be of same type", "In node 7: no such operator")
        ran = deploy("build", proven)
        assert ran.code == 1
        assert "TensorRT refuses model.onnx: In node 0: must be of same type" in ran.error
        assert ran.error.endswith("; and with weak typing: In node 7: no such operator")
        api.fail("parse", "In node 0: must be of same type")
        api.fail("build_serialized_network", "no implementation")
        ran = deploy("build", proven)
        assert (
            "the engine could not be built: no implementation (with weak typing, for the typed graph was refused: In node 0: must be"
            in ran.error
        )


def test_tensorrt_11_has_no_weak_typing_to_fall_back_to(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    api.fail("parse", "In node 0: must be of same type")
    ran = deploy("build", proven)
    assert (ran.code, ran.error.count("its types are mixed")) == (1, 1)
