"""Calls of a Triton server over gRPC: each with a timeout, again where it cannot be reached, and errors in one line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtimes.backends._triton_connection import TIMEOUT, Connection
from runtimes.backends._triton_model import ServedModel, spec_from_server
from runtimes.errors import BackendUnavailable, ResnetExportError
from runtimes.printable import printable
from runtimes.server_url import ModelAddress
from runtimes.specs import TensorSpec

# Read when gRPC is imported: it writes a line to stderr for each handshake that fails, beside the error that it raises.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

WAITS_S = (0.1, 0.3, 0.9)
"""How long before each new try of a call that found no server: long enough for one that takes a connection anew."""
CHANNEL = [
    ("grpc.max_send_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    # gRPC would wait for a second, and then ever longer, before it connects again, and refuse calls till then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
"""gRPC's own messages end at 4 MiB, which is a batch of seven pictures."""

Answer = TypeVar("Answer")


class ModelClient:
    """One model on a server. Its methods may be called from several threads."""

    def __init__(self, address: ModelAddress, connection: Connection) -> None:
        self._address, self._timeout_s = address, connection.timeout_s
        self._model = address.model
        self._version = "" if address.version is None else str(address.version)
        files = (connection.roots, connection.key, connection.certificate)
        roots, key, certificate = (None if path is None else str(path) for path in files)
        self._client = triton.InferenceServerClient(
            address.target,
            ssl=address.tls,
            root_certificates=roots,
            private_key=key,
            certificate_chain=certificate,
            channel_args=CHANNEL,
        )

    def describe(self) -> ServedModel:
        """What the server says of itself and the model.

        Raises:
            BackendUnavailable: there is no server, it does not answer in time, or the model or its version is not
                there, or not ready.
            ResnetExportError: it refuses to tell.
        """
        client, model, version, timeout = self._client, self._model, self._version, self._timeout_s
        server = self._ask(lambda: client.get_server_metadata(client_timeout=timeout))
        described = self._ask(lambda: client.get_model_metadata(model, version, client_timeout=timeout))
        config = self._ask(lambda: client.get_model_config(model, version, client_timeout=timeout)).config
        if not self._ask(lambda: client.is_model_ready(model, version, client_timeout=timeout)):
            raise BackendUnavailable(f"{self._address}: the model is not ready; wait, or see the server's log")
        versions = (version,) if version else tuple(described.versions)
        if version and version not in described.versions:
            raise BackendUnavailable(
                f"{self._address}: expected version {version}, got {', '.join(described.versions) or 'none'}; name one"
            )
        inputs, outputs = (
            tuple(spec_from_server(one.name, one.datatype, one.shape) for one in tensors)
            for tensors in (described.inputs, described.outputs)
        )
        backend = config.backend or config.platform or described.platform
        name = f"{server.name} {server.version}"
        return ServedModel(name, backend, versions, config.max_batch_size, inputs, outputs)

    def infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
        """The model's outputs for one request: new arrays, by name.

        Raises:
            BackendUnavailable: as `describe`.
            ResnetExportError: the server refuses the request, or answers with other names, types or shapes.
        """
        inputs = []
        for name, array in feeds.items():
            one = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            inputs.append(one.set_data_from_numpy(array))
        asked = [triton.InferRequestedOutput(spec.name) for spec in outputs]
        found = self._ask(
            lambda: self._client.infer(
                self._model, inputs, self._version, outputs=asked, client_timeout=self._timeout_s
            )
        )
        rows = len(next(iter(feeds.values())))
        return {spec.name: self._output(found, spec, rows) for spec in outputs}

    def _output(self, found: triton.InferResult, spec: TensorSpec, rows: int) -> NDArray[Any]:
        expected = (rows, *spec.shape[1:])
        try:
            values = found.as_numpy(spec.name)
        except (ValueError, TypeError) as error:  # fewer bytes than its shape says, or a type that numpy has not
            raise ResnetExportError(f"{self._address}: its '{spec.name}' cannot be read: {error}") from error
        if values is None:
            raise ResnetExportError(f"{self._address}: expected the output '{spec.name}', got an answer without it")
        same = len(values.shape) == len(expected) and all(
            size == wanted or isinstance(wanted, str) for size, wanted in zip(values.shape, expected, strict=True)
        )
        if not same or values.dtype.name != spec.dtype:
            wanted_text, got = "x".join(map(str, expected)), "x".join(map(str, values.shape))
            raise ResnetExportError(
                f"{self._address}: expected '{spec.name}' as {spec.dtype} {wanted_text}, got {values.dtype} {got}; see "
                "the server's log"
            )
        return np.array(values)  # it is a view of the message

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """The answer of a call, which is tried again while the server cannot be reached, and only then."""
        for wait_s in (*WAITS_S, None):
            try:
                return call()
            except InferenceServerException as error:
                code = str(error.status()).removeprefix("StatusCode.")
                if code == "UNAVAILABLE" and wait_s is not None:
                    time.sleep(wait_s)
                    continue
                raise self._error(code, error.message() or "") from error
        raise AssertionError("the last try returns or raises")

    def _error(self, code: str, message: str) -> ResnetExportError:
        said = printable(" ".join(message.split())) or code
        if code == "UNAVAILABLE" and self._address.tls and "WRONG_VERSION_NUMBER" in said:
            plain = str(self._address).replace("grpcs://", "grpc://", 1)
            return BackendUnavailable(f"{self._address}: the port answers without TLS; give {plain}")
        if code == "UNAVAILABLE":
            return BackendUnavailable(
                f"{self._address}: no server that answers, or the model is not ready ({said}); start it, and check the "
                "port: Triton's for gRPC is 8001"
            )
        if code == "DEADLINE_EXCEEDED":
            return BackendUnavailable(
                f"{self._address}: no answer within {self._timeout_s:g} s; see whether the server is busy, or set "
                f"{TIMEOUT} to more seconds"
            )
        if code == "UNIMPLEMENTED":
            return BackendUnavailable(f"{self._address}: expected a Triton server, got another service ({said})")
        if code == "NOT_FOUND":
            return BackendUnavailable(f"{self._address}: {said}{self._others()}")
        return ResnetExportError(f"{self._address}: the server refused: {said}")

    def _others(self) -> str:
        """The models that the server has instead, for a message."""
        try:
            index = self._client.get_model_repository_index(client_timeout=self._timeout_s)
        except InferenceServerException:
            return "; see the server's log"
        ready = sorted({f"{one.name}/{one.version}" for one in index.models if one.state == "READY"})
        if not ready:
            return "; it has no model that is ready"
        has = f"; it has {printable(', '.join(ready))}"
        if not self._version or not any(one.startswith(f"{self._model}/") for one in ready):
            return has
        return (
            f"{has}; where version {self._version} is in the repository, write it anew with --serve-versions, so that "
            "more than the newest are served"
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()
