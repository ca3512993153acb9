"""ONNX Runtime's TensorRT provider: what it is told, where its engines go, and what is said where it is not here."""

from __future__ import annotations

import os
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
    flags = {
        name
        for name in settings
        if name.startswith("trt_") and name.endswith(("fp16_enable", "int8_enable", "bf16_enable"))
    }
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


def test_every_folder_of_the_cache_is_made_private(bundle: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        folder = Path(tensorrt_settings(bundle / "model.onnx", None)["trt_engine_cache_path"])
    finally:
        os.umask(before)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, cache, cache.parent, cache.parent.parent)] == [
        0o700
    ] * 4


@pytest.mark.parametrize("which", ["own", "tensorrt", "resnet-export"])
@pytest.mark.parametrize("how", ["writable", "link"])
def test_a_cache_that_others_may_have_filled_is_refused(
    shipped_bundle: Any, cache: Path, tmp_path: Path, which: str, how: str
) -> None:
    model = shipped_bundle("fp16").file("model.onnx")
    folder = Path(tensorrt_settings(model, None)["trt_engine_cache_path"])
    spoilt = {"own": folder, "tensorrt": cache, "resnet-export": cache.parent}[which]
    if how == "writable":
        spoilt.chmod(0o777)
    else:
        spoilt.rename(tmp_path / "away")
        spoilt.symlink_to(tmp_path / "away")
    with pytest.raises(BackendUnavailable) as caught:
        tensorrt_settings(model, None)
    assert str(caught.value).startswith(f"expected {spoilt} to be a folder that you alone may write to, got ")
    assert str(caught.value).endswith("remove it, or set XDG_CACHE_HOME to a folder that you alone may write to")


def test_a_home_that_cannot_be_written_to_is_told_in_one_line(
    shipped_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shipped_bundle("fp16").file("model.onnx")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        BackendUnavailable, match="cannot make the folder .*: Not a directory; set XDG_CACHE_HOME to a folder"
    ):
        tensorrt_settings(model, None)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(
        BackendUnavailable, match="this user has no home folder; set XDG_CACHE_HOME to a folder that you may write to"
    ):
        tensorrt_settings(model, None)


@pytest.mark.skipif(NAME in onnxruntime.get_available_providers(), reason="this onnxruntime has the provider")
def test_an_onnxruntime_without_the_provider_says_what_to_install(bundle: Path, cache: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"built without TensorrtExecutionProvider; .*resnet-export\[gpu\]"):
        open_runtime(bundle, "onnxruntime", provider="tensorrt")
    assert not cache.exists()
