"""The backend `triton` on a real Triton server (without a GPU): what it says, takes and answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_answers import INPUT, OUTPUT, images
from triton_server import TritonServer, need_server, triton_server

from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, ResnetExportError
from runtimes.specs import BatchRange

pytestmark = pytest.mark.slow

CONFIG = """\
backend: "onnxruntime"
max_batch_size: {most}
input [ {{ name: "input", data_type: TYPE_FP32, dims: [ {channels}, 28, 28 ] }} ]
output [ {{ name: "logits", data_type: TYPE_FP32, dims: [ 10 ] }} ]
instance_group [ {{ kind: KIND_CPU }} ]
version_policy: {{ all {{ }} }}
dynamic_batching {{ }}
"""


@dataclass(frozen=True)
class Real:
    server: TritonServer
    bundle: Bundle

    def url(self, model: str) -> str:
        return f"grpc://{self.server.grpc}/{model}"


def add_model(repository: Path, name: str, model: Path, **words: int) -> None:
    for version in ("1", "2"):
        folder = repository / name / version
        folder.mkdir(parents=True)
        shutil.copy(model, folder / "model.onnx")
    (repository / name / "config.pbtxt").write_text(CONFIG.format(**{"most": 8, "channels": 1, **words}))


@pytest.fixture(scope="module")
def real(good: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    need_server()
    pytest.importorskip("tritonclient.grpc", reason="the backend triton needs its client")
    bundle, folder = good[1].bundle, tmp_path_factory.mktemp("served")
    model, repository = bundle.folder / "model.onnx", folder / "repository"
    for name, words in {"tiny": {}, "small": {"most": 3}, "large": {"most": 64}, "coloured": {"channels": 3}}.items():
        add_model(repository, name, model, **words)
    with triton_server(repository, folder / "log.txt") as server:
        yield Real(server, bundle)


def test_its_answers_are_the_librarys_bit_for_bit(real: Real) -> None:
    with (
        open_runtime(real.bundle, "triton", provider=real.url("tiny")) as model,
        OnnxRuntime.open(real.bundle.folder / "model.onnx") as here,
    ):
        assert (model.batch, model.provider) == (BatchRange(1, 4, 8), real.url("tiny"))
        assert model.details["server"].startswith("triton 2.")
        assert model.details["server"].endswith(", versions 1, 2 on onnxruntime, batches of at most 8")
        for count in (1, 4, 8):
            fed = {INPUT: images(count)}
            np.testing.assert_array_equal(model.run(fed)[OUTPUT], here.run(fed)[OUTPUT])
        assert model.run({INPUT: images(19)})[OUTPUT].shape == (19, 10)


def test_a_smaller_server_gets_smaller_batches(real: Real) -> None:
    with open_runtime(real.bundle, "triton", provider=real.url("small/2")) as model:
        assert model.batch == BatchRange(1, 3, 3)
        assert model.run({INPUT: images(8)})[OUTPUT].shape == (8, 10)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("large", "expected a max_batch_size of at most 8"),
        ("coloured", "'input': expected float32 batchx1x28x28, got float32 batchx3x28x28"),
    ],
)
def test_another_model_is_refused(real: Real, model: str, said: str) -> None:
    with pytest.raises(ResnetExportError, match=said) as caught:
        open_runtime(real.bundle, "triton", provider=real.url(model))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("model", ["resnet50", "tiny/7"])
def test_what_is_not_there_is_named_beside_what_is(real: Real, model: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"unknown model.*it has coloured/1.*tiny/2") as caught:
        open_runtime(real.bundle, "triton", provider=real.url(model))
    assert caught.value.exit_code == 3


def test_the_port_of_http_is_no_server_for_it(real: Real) -> None:
    with pytest.raises(BackendUnavailable, match="Triton's for gRPC is 8001"):
        open_runtime(f"grpc://{real.server.http}/tiny", "triton")


def test_what_the_server_refuses_is_said(real: Real) -> None:
    with open_runtime(real.url("coloured"), "triton") as model, pytest.raises(ResnetExportError, match="refused"):
        model.run({INPUT: np.zeros((2, 3, 28, 28), np.float32)})


def test_check_and_bench_go_over_it(real: Real, deploy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.verification.bench.run.library_names", lambda: ())
    to_server = ("--backend", "triton", "--url", real.url("tiny/1"))
    checked = deploy("check", real.bundle.folder, *to_server, "--quiet")
    assert checked.code == 0, checked.err
    assert "triton 2." in checked.out
    quick = ("--rounds", "2", "--seconds", "0.05", "--warm-up", "2", "--batch", "1,8", "--quiet", "--json")
    done = deploy("bench", real.bundle.folder, "--backend", "onnxruntime", *to_server, "--concurrency", "1,4", *quick)
    assert done.code == 0, done.err
    entries = json.loads(done.out)["entries"]
    assert [one["contender"]["concurrency"] for one in entries] == [1, 1, 4]
    assert all(one["verdict"] == "ok" and one["latency"] is not None for one in entries)
