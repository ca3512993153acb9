"""TensorRT-RTX, whose engine is a stand-in: its kernels are compiled once, and kept beside the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_bundles import add_engine, assert_right
from engine_fixtures import cuda_fixture, folder_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT
from tiny_answers import INPUT, OUTPUT, images

from runtimes import open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable
from runtimes.nvidia.engine_file import read_sidecar
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import KEY_VARIABLE, ensure_machine_key, with_seal


@pytest.fixture
def rtx(cuda: StandinCuda, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StandinTensorRT, Path]:
    kind: Any = backend_class("tensorrt-rtx")
    api = StandinTensorRT(cuda, kind.API.__version__, tag=b"vtrt")
    monkeypatch.setattr(kind, "API", api)
    return api, add_engine(folder, api, backend="tensorrt-rtx")


def test_rtx_compiles_at_once_captures_by_itself_and_keeps_its_kernels(
    rtx: tuple[StandinTensorRT, Path], reference: OnnxRuntime
) -> None:
    api, path = rtx
    kind: Any = backend_class("tensorrt-rtx")
    for turn in range(2):
        with kind.open(path) as runtime:
            assert runtime._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            assert runtime._config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            for count in (3, 4, 3):
                assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))
        assert api.calls["create_execution_context"] == turn + 1  # no graphs of ours
        assert dict(api.compiled) == {3: 1, 4: 1}  # the second time they are in the cache
    assert path.with_suffix(".cache").is_file()


@pytest.mark.parametrize("content", [b"junk", b'["1.0.0.0", [3]]'], ids=["malformed", "of another version"])
def test_an_rtx_cache_that_does_not_fit_is_filled_anew(rtx: tuple[StandinTensorRT, Path], content: bytes) -> None:
    api, path = rtx
    path.with_suffix(".cache").write_bytes(content)
    with open_runtime(path, "tensorrt-rtx") as runtime:
        runtime.run({INPUT: images(3)})
    assert api.compiled[3] == 1
    assert api.__version__.encode() in path.with_suffix(".cache").read_bytes()


def test_kernels_that_another_machine_compiled_are_not_loaded(rtx: tuple[StandinTensorRT, Path]) -> None:
    api, path = rtx
    sha256, kernels = read_sidecar(sidecar_of(path)).engine_sha256, f'["{api.__version__}", [3]]'.encode()
    for known, content in enumerate(
        (kernels, with_seal(kernels, sha256, bytes(32)), with_seal(kernels, "0" * 64, ensure_machine_key()))
    ):
        path.with_suffix(".cache").write_bytes(content)
        with open_runtime(path, "tensorrt-rtx") as runtime:
            runtime.run({INPUT: images(3)})
        assert api.compiled[3] == known + 1
    path.with_suffix(".cache").write_bytes(with_seal(kernels, sha256, ensure_machine_key()))
    with open_runtime(path, "tensorrt-rtx") as runtime:
        runtime.run({INPUT: images(3)})
    assert api.compiled[3] == 3


def test_an_rtx_engine_without_a_place_for_a_key_runs_and_keeps_no_kernels(
    rtx: tuple[StandinTensorRT, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, path = rtx
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "key"))
    with open_runtime(path, "tensorrt-rtx", trust_engine=read_sidecar(sidecar_of(path)).engine_sha256) as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)
    assert not path.with_suffix(".cache").exists()


def test_an_rtx_bundle_that_may_not_be_written_to_runs_all_the_same(
    rtx: tuple[StandinTensorRT, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = rtx

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("runtimes.backends.tensorrt_rtx.write_in_one_step", refuse)
    with open_runtime(path, "tensorrt-rtx") as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)
    assert not path.with_suffix(".cache").exists()


def test_an_rtx_cache_that_cannot_be_read_or_written_is_done_without(rtx: tuple[StandinTensorRT, Path]) -> None:
    _, path = rtx
    path.with_suffix(".cache").mkdir()
    with open_runtime(path, "tensorrt-rtx") as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)


def test_an_rtx_engine_that_cannot_be_opened_says_why(rtx: tuple[StandinTensorRT, Path]) -> None:
    api, path = rtx
    api.fail("create_execution_context", "no room")
    with pytest.raises(BackendUnavailable, match="cannot make an execution context for .*: no room"):
        open_runtime(path, "tensorrt-rtx")
    assert not path.with_suffix(".cache").exists()
