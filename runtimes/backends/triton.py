"""Triton: a model that an inference server runs, over gRPC (`grpc://HOST:8001/MODEL[/VERSION]`, `grpcs://` for TLS)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, final

from numpy.typing import NDArray

from runtimes.backends._triton_client import ModelClient
from runtimes.backends._triton_connection import connection_from_environment
from runtimes.backends._triton_model import ServedModel, agreed_batch
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BadInput, PlanError, ResnetExportError
from runtimes.server_url import FORM, ModelAddress
from runtimes.specs import BatchRange
from runtimes.tuning import DEFAULT_TUNING, Tuning


@final
class TritonRuntime(Runtime):
    """A model on a server. Unlike other backends' it may be run from several threads at a time, which is how a server
    gets requests that it can put together.

    Where a bundle is opened, `provider` is the URL of its model, and what the server says of it is held against the
    manifest. `Tuning` says nothing here: the server's own configuration does.
    """

    FILE = "model.onnx"  # what the server's model was made from
    TOGETHER = True

    def __init__(
        self, address: ModelAddress, client: ModelClient, served: ServedModel, batch: BatchRange | None
    ) -> None:
        super().__init__(served.inputs, served.outputs, batch)
        self._address, self._client, self._served = address, client, served

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> NoReturn:
        raise BadInput(f"expected a bundle, or {FORM}, got the file {path}; a server runs models of its own")

    @classmethod
    def open_url(cls, url: str, *, batch: BatchRange | None = None) -> TritonRuntime:
        with _connected(url) as (address, client, served):
            served.check_numbers(str(address))
            return cls(address, client, served, batch or served.batch)

    @classmethod
    def open_model(
        cls,
        model: Path | Bundle,
        *,
        provider: str | None = None,
        trusted: Collection[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> TritonRuntime:
        if isinstance(model, Path):
            return cls.open(model)
        if provider is None:
            raise PlanError(f"expected the URL of the server's model as the provider, got none; give {FORM}")
        manifest = model.manifest
        with _connected(provider) as (address, client, served):
            batch = agreed_batch(served, manifest, str(address))
            # in the manifest's order, and with its names of free dimensions
            served = replace(served, inputs=manifest.inputs, outputs=manifest.outputs)
            return cls(address, client, served, batch)

    @property
    def provider(self) -> str:
        return str(self._address)

    @property
    def details(self) -> dict[str, str]:
        return {"server": self._served.text}

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            return self._client.infer(feeds, self.outputs)
        except (ResnetExportError, ValueError):  # gRPC has its own words for a channel that is closed
            self._turns.check()
            raise

    def _sibling(self) -> TritonRuntime:
        client = ModelClient(self._address, connection_from_environment())
        return TritonRuntime(self._address, client, self._served, self.batch)

    def _close(self) -> None:
        self._client.close()


@contextmanager
def _connected(url: str) -> Iterator[tuple[ModelAddress, ModelClient, ServedModel]]:
    """A model's address, a client for it, and what its server says; the client is closed where the block fails."""
    address = ModelAddress.parse(url)
    client = ModelClient(address, connection_from_environment())
    try:
        yield address, client, client.describe()
    except BaseException:
        client.close()
        raise


RUNTIME = TritonRuntime
