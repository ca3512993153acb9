"""What is kept on the disk between runs, damaged: it is noticed, and made again."""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends import _tensorrt_provider as provider
from runtimes.backends.onnxruntime import OnnxRuntime

REAL_SESSION = onnxruntime.InferenceSession


def flipped(data: bytes) -> bytes:
    """With one bit that is another."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0",
    "another": lambda data: bytes(len(data)),
}


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet-export"


class Session:
    """As the TensorRT provider's: it builds what its cache lacks, takes what it has, and fails on what is damaged."""

    built: ClassVar[list[str]] = []
    late: ClassVar[bool] = False

    def __init__(self, model: Any, options: Any, providers: Any, **_: Any) -> None:
        self.real = REAL_SESSION(model, providers=["CPUExecutionProvider"])
        self.folder = None
        if isinstance(providers[0], tuple) and providers[0][0] == provider.NAME:
            self.folder = Path(providers[0][1]["trt_engine_cache_path"])
            if not self.late:
                self.load()

    def load(self) -> None:
        assert self.folder is not None
        for name in ("graph_1.engine", "graph_1.profile", "sm90.timing"):
            path, content = self.folder / name, name.encode() * 100
            if not path.exists():
                path.write_bytes(content)
                self.built.append(name)
            elif path.read_bytes() != content:
                raise RuntimeError("TensorRT EP could not deserialize engine from cache")

    def get_providers(self) -> list[str]:
        return [provider.NAME]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture(name="session")
def session_fixture(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    made = type("Made", (Session,), {"built": [], "late": False})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider.NAME])
    monkeypatch.setattr("runtimes.backends._cuda_provider.load_libraries", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    return made


@pytest.mark.parametrize("damage", [*DAMAGE, "unknown"])
def test_a_damaged_engine_of_the_tensorrt_provider_is_built_again(
    tiny_model: Path, cache: Path, session: type[Session], damage: str
) -> None:
    model = tiny_model / "model.onnx"
    OnnxRuntime.open(model, provider="tensorrt").close()
    everything = ["graph_1.engine", "graph_1.profile", "sm90.timing"]
    assert session.built == everything
    OnnxRuntime.open(model, provider="tensorrt").close()
    assert session.built == everything  # what is whole is taken
    (folder,) = (cache / "tensorrt").iterdir()
    for name in everything:
        session.built.clear()
        if damage == "unknown":  # as a process leaves it that was killed before it was done
            (folder / provider.SUMS).unlink()
            (folder / name).write_bytes(b"half")
        else:
            (folder / name).write_bytes(DAMAGE[damage]((folder / name).read_bytes()))
        OnnxRuntime.open(model, provider="tensorrt").close()
        assert session.built == (everything if damage == "unknown" else [name])


def test_engines_that_the_tensorrt_provider_builds_when_it_runs_are_kept_too(
    tiny_model: Path, cache: Path, session: type[Session]
) -> None:
    session.late = True
    for built in (3, 0):
        session.built.clear()
        with OnnxRuntime.open(tiny_model / "model.onnx", provider="tensorrt") as runtime:
            runtime._session.load()
        assert len(session.built) == built


def test_they_are_kept_too_where_nobody_closes_the_runtime(
    tiny_model: Path, cache: Path, session: type[Session]
) -> None:
    session.late = True
    for built in (3, 0):
        session.built.clear()
        runtime = OnnxRuntime.open(tiny_model / "model.onnx", provider="tensorrt")
        runtime._session.load()
        del runtime
        gc.collect()
        assert len(session.built) == built


def test_checksums_that_cannot_be_read_are_made_again(tiny_model: Path, cache: Path, session: type[Session]) -> None:
    model = tiny_model / "model.onnx"
    OnnxRuntime.open(model, provider="tensorrt").close()
    (folder,) = (cache / "tensorrt").iterdir()
    for sums in (b"\xff\xfe", b"", b"one word\n", b"a  b\nc"):
        (folder / provider.SUMS).write_bytes(sums)
        session.built.clear()
        OnnxRuntime.open(model, provider="tensorrt").close()
        assert len(session.built) == 3


def test_a_compiled_model_of_openvino_damaged_anywhere_is_compiled_again(
    tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from runtimes.backends.openvino import OpenVinoRuntime

    def answers() -> Any:
        with OpenVinoRuntime.open(tiny_model / "model.onnx") as runtime:
            return runtime.run({INPUT: images(2)})[OUTPUT]

    first = answers()
    (kept,) = (cache / "openvino").rglob("*.blob")
    whole, chance = kept.read_bytes(), random.Random(5)
    for _ in range(10):
        place = chance.randrange(len(whole))
        damaged = whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :]
        kept.write_bytes(chance.choice([damaged, whole[:place], whole[place:]]))
        np.testing.assert_array_equal(answers(), first)
        blob, digest = kept.read_bytes()[:-32], kept.read_bytes()[-32:]
        assert hashlib.sha256(blob).digest() == digest  # and is whole again
