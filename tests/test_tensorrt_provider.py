"""ONNX Runtime's TensorRT provider: what it is told, where its engines go, and what is said where it is not here."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from runtimes import BatchRange, Bundle, open_runtime
from runtimes.backends._tensorrt_provider import NAME, cache_folder, tensorrt_settings
from runtimes.errors import BackendUnavailable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet-export" / "tensorrt"


@pytest.fixture(params=["fp32", "fp16", "int8"])
def bundle(request: pytest.FixtureRequest, shipped_bundle: Any) -> Path:
    folder: Path = shipped_bundle(request.param).folder
    return folder


def test_the_profile_the_types_and_the_cache_are_the_bundles(bundle: Path, cache: Path) -> None:
    settings = tensorrt_settings(bundle / "model.onnx", BatchRange(1, 8, 32))
    shapes = [settings[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")]
    assert shapes == ["input:1x1x28x28", "input:8x1x28x28", "input:32x1x28x28"]
    flags = {name for name in settings if name.startswith("trt_") and name.endswith(("fp16_enable", "int8_enable", "bf16_enable"))}
    expected = {"fp32": set(), "fp16": {"trt_fp16_enable"}, "int8": {"trt_fp16_enable", "trt_int8_enable"}}
    assert flags == expected[Bundle.open(bundle).manifest.precision]
    folder = Path(settings["trt_engine_cache_path"])
    assert folder.parent == cache
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert settings["trt_engine_cache_enable"] == "1"


def test_another_content_has_another_folder_and_the_same_has_the_same(bundle: Path, tmp_path: Path) -> None:
    first = tensorrt_settings(bundle / "model.onnx", None)
    assert "trt_profile_min_shapes" not in first
    assert tensorrt_settings(bundle / "model.onnx", None) == first
    model = onnx.load(bundle / "model.onnx")
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1] + b"\x01"
    onnx.save(model, tmp_path / "model.onnx")
    assert tensorrt_settings(tmp_path / "model.onnx", None)["trt_engine_cache_path"] != first["trt_engine_cache_path"]


def test_by_default_the_cache_is_under_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "resnet-export" / "tensorrt"


@pytest.mark.skipif(NAME in onnxruntime.get_available_providers(), reason="this onnxruntime has the provider")
def test_an_onnxruntime_without_the_provider_says_what_to_install(bundle: Path, cache: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"built without TensorrtExecutionProvider; .*resnet-export\[gpu\]"):
        open_runtime(bundle, "onnxruntime", provider="tensorrt")
    assert not cache.exists()
