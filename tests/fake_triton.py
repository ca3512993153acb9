"""A server that speaks Triton's protocol over real gRPC on this machine, and misbehaves as it is told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

DTYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "int64": "INT64"}
MODEL = "tiny"
Tensor = tuple[str, str, tuple[int, ...]]
Outputs = dict[str, NDArray[Any]]


@dataclass
class FakeTriton:
    """What a server says and does. A test changes it while it runs.

    Attributes:
        inputs, outputs: name, Triton's type, and shape with the batch, -1 where it is free.
        versions: of the one model, `MODEL`.
        hang: is no answer to come to this call of the protocol, as `ModelInfer`?
        unavailable: how many calls from now on find no server behind the address.
        spoil: changes what the model answers.
        calls: how often each call came, and `rows` of each request.
    """

    run: Callable[[dict[str, NDArray[Any]]], Outputs]
    inputs: tuple[Tensor, ...] = (("input", "FP32", (-1, 1, 28, 28)),)
    outputs: tuple[Tensor, ...] = (("logits", "FP32", (-1, 10)),)
    max_batch: int = 8
    versions: tuple[str, ...] = ("1",)
    ready: bool = True
    hang: str = ""
    unavailable: int = 0
    refuse: str = ""
    spoil: Callable[[Outputs], Outputs] = lambda outputs: outputs
    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    rows: list[int] = field(default_factory=list)
    most_at_once: int = 0


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it ships no types
    def __init__(self, told: FakeTriton) -> None:
        self.told, self.lock, self.now = told, threading.Lock(), 0
        self.released = threading.Event()

    def _come(self, call: str, context: grpc.ServicerContext, request: Any = None) -> None:
        told = self.told
        with self.lock:
            told.calls[call] += 1
            down = told.unavailable > 0
            told.unavailable -= down
        if down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if told.hang == call:
            self.released.wait(30)
        if told.refuse:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, told.refuse)
        if request is None:
            return
        name = getattr(request, "name", "") or getattr(request, "model_name", "")
        version = getattr(request, "version", "") or getattr(request, "model_version", "")
        if name != MODEL or (version and version not in told.versions):
            where = f"'{name}' version {version}" if version and name == MODEL else f"'{name}'"
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {where} is not found")

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._come("ServerMetadata", context)
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._come("ModelReady", context)
        return service_pb2.ModelReadyResponse(ready=self.told.ready)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        one = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(
            models=[one(name=MODEL, version=version, state="READY") for version in self.told.versions]
        )

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._come("ModelMetadata", context, request)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        each = (
            [tensor(name=name, datatype=kind, shape=shape) for name, kind, shape in tensors]
            for tensors in (self.told.inputs, self.told.outputs)
        )
        inputs, outputs = each
        return service_pb2.ModelMetadataResponse(
            name=MODEL, versions=self.told.versions, platform="onnxruntime_onnx", inputs=inputs, outputs=outputs
        )

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._come("ModelConfig", context, request)
        config = model_config_pb2.ModelConfig(name=MODEL, backend="onnxruntime", max_batch_size=self.told.max_batch)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.now += 1
            self.told.most_at_once = max(self.told.most_at_once, self.now)
        try:
            self._come("ModelInfer", context, request)
            numpy = {triton: name for name, triton in DTYPES.items()}
            feeds = {
                one.name: np.frombuffer(raw, numpy[one.datatype]).reshape(tuple(one.shape))
                for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            }
            self.told.rows.append(len(next(iter(feeds.values()))))
            outputs = self.told.spoil(self.told.run(feeds))
        finally:
            with self.lock:
                self.now -= 1
        tensor = service_pb2.ModelInferResponse.InferOutputTensor
        return service_pb2.ModelInferResponse(
            model_name=MODEL,
            model_version=self.told.versions[-1],
            outputs=[
                tensor(name=name, datatype=DTYPES[values.dtype.name], shape=values.shape)
                for name, values in outputs.items()
            ],
            raw_output_contents=[values.tobytes() for values in outputs.values()],
        )


def model_of(path: Path) -> Callable[[dict[str, NDArray[Any]]], Outputs]:
    """A model file's answers, computed by one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


@contextmanager
def fake_triton(told: FakeTriton, credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeTriton]:
    """Start the server; `url` is then set."""
    service = _Service(told)
    server = grpc.server(
        ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    if credentials is None:
        told.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}/{MODEL}"
    else:
        told.url = f"grpcs://localhost:{server.add_secure_port('127.0.0.1:0', credentials)}/{MODEL}"
    server.start()
    try:
        yield told
    finally:
        service.released.set()
        server.stop(0).wait(10)


def reset(told: FakeTriton) -> None:
    """Everything as it was, but for the address."""
    fresh = replace(FakeTriton(told.run), url=told.url)
    told.__dict__.update(fresh.__dict__)
