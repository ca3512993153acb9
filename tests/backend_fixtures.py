"""Each backend that can run here, with its file of the tiny model. A test file imports the fixtures that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runtimes import Runtime, backend_names
from runtimes._open import backend_class, local_backend_names
from runtimes.errors import BackendUnavailable
from runtimes.server_url import BACKEND as TRITON
from runtimes.server_url import is_url
from runtimes.specs import BatchRange
from runtimes.tuning import Tuning


@dataclass(frozen=True)
class Backend:
    """A backend that can run here, on one provider, and the file of the small model that it takes; or the URL of that
    model on a server, which is then its provider."""

    name: str
    kind: type[Runtime]
    path: Path
    provider: str | None

    @property
    def given(self) -> str:
        """What `open_runtime` takes for the model alone."""
        return str(self.provider if is_url(self.provider) else self.path)

    def need_file(self) -> None:
        """Skip what is about files alone."""
        if is_url(self.provider):
            pytest.skip("a server runs models of its own, and takes no file")

    def open(self, batch: BatchRange | None = None) -> Runtime:
        if is_url(self.provider):
            return self.kind.open_url(str(self.provider), batch=batch)
        # On a busy machine more threads wait for each other longer than so small a model computes.
        return self.kind.open(self.path, provider=self.provider, batch=batch, tuning=Tuning(1))


def opened_or_skipped(name: str, provider: str | None, folder: Path) -> Backend:
    try:
        kind = backend_class(name)
        kind.check_here()
        if name == TRITON:
            pytest.skip("a server runs models of its own, and takes no file")
        if kind.FILE == "engines":
            pytest.skip("engines keep the same contract in tests/runtimes/test_engine_runtime.py")
        backend = Backend(name, kind, folder / kind.FILE, provider)
        backend.open().close()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return backend


CASES = [pytest.param((name, None), id=name) for name in backend_names()]
if torch.cuda.is_available():
    GPU_CASES = [*((name, "cuda") for name in local_backend_names())]
    GPU_CASES += [("onnxruntime", provider) for provider in ("cuda-nhwc", "cuda-graph")]
    CASES += [pytest.param(case, id="-".join(case), marks=pytest.mark.gpu) for case in GPU_CASES]


@pytest.fixture(name="one_thread", scope="module", autouse=True)
def one_thread_fixture() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other a hundred times longer than so small a model computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="backend", scope="module", params=CASES)
def backend_fixture(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Backend]:
    name, provider = request.param
    if name != TRITON:
        yield opened_or_skipped(name, provider, tiny_model)
        return
    pytest.importorskip("tritonclient.grpc", reason="the backend triton needs its client")
    from fake_triton import FakeTriton, fake_triton, model_of

    path = tiny_model / "model.onnx"
    with fake_triton(FakeTriton(model_of(path), max_batch=0)) as server:
        yield Backend(name, backend_class(name), path, server.url)
