"""The readers of what is no file of ours: a server's answers, texts on a command line, files of the system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_formats import spoilt_message
from fuzz_mutate import spoilt_text
from fuzz_readers import Reader

from exporter.deployment.remote.address import address_from_text
from runtimes import Bundle
from runtimes.backends.triton import TritonRuntime
from runtimes.nvidia.trust import trusted_engines
from runtimes.server_url import ModelAddress
from runtimes.specs import BatchRange

URL = "grpc://127.0.0.1:8001/tiny"


def server_readers(sample: Path) -> list[Reader]:
    """Of a Triton server's answers. `sample` is the bundle that the server's model is held against."""
    import tritonclient.grpc as grpc
    from tritonclient.grpc import InferResult, model_config_pb2, service_pb2

    tensor = service_pb2.ModelMetadataResponse.TensorMetadata
    metadata = service_pb2.ModelMetadataResponse(
        name="tiny",
        versions=["1"],
        platform="onnxruntime_onnx",
        inputs=[tensor(name="input", datatype="FP32", shape=[-1, 1, 28, 28])],
        outputs=[tensor(name="logits", datatype="FP32", shape=[-1, 10])],
    )
    config = service_pb2.ModelConfigResponse(
        config=model_config_pb2.ModelConfig(name="tiny", backend="onnxruntime", max_batch_size=8)
    )
    output = service_pb2.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=[2, 10])
    answer = service_pb2.ModelInferResponse(
        model_name="tiny", outputs=[output], raw_output_contents=[np.zeros((2, 10), np.float32).tobytes()]
    )
    told = {"metadata": metadata, "config": config, "infer": answer}

    class Client:
        """In place of tritonclient's: answers what it is told."""

        def __init__(self, target: str, **options: Any) -> None:
            pass

        def get_server_metadata(self, **options: Any) -> Any:
            return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

        def get_model_metadata(self, *names: str, **options: Any) -> Any:
            return told["metadata"]

        def get_model_config(self, *names: str, **options: Any) -> Any:
            return told["config"]

        def is_model_ready(self, *names: str, **options: Any) -> bool:
            return True

        def infer(self, *names: Any, **options: Any) -> Any:
            return InferResult(told["infer"])

        def close(self) -> None:
            pass

    def reader(part: str, kind: type[Any]) -> Reader:
        right = told[part]

        def ask(path: Path) -> None:
            try:
                told[part] = kind.FromString(path.read_bytes())
            except Exception:  # gRPC itself refuses what is no message
                return
            own, grpc.InferenceServerClient = grpc.InferenceServerClient, Client
            try:
                with TritonRuntime.open_url(URL) as runtime:
                    _ = runtime.details
                with TritonRuntime.open_model(Bundle.open(sample), provider=URL) as runtime:
                    runtime.run({"input": np.zeros((2, 1, 28, 28), np.float32)})
            finally:
                grpc.InferenceServerClient = own
                told[part] = right

        return Reader(
            f"triton {part}", part, [right.SerializeToString()], spoilt_message(kind), ask, 50, named="grpc://"
        )

    return [
        reader("metadata", service_pb2.ModelMetadataResponse),
        reader("config", service_pb2.ModelConfigResponse),
        reader("infer", service_pb2.ModelInferResponse),
    ]


def text_readers() -> list[Reader]:
    """Of texts on a command line, each the content of a file."""
    kinds: dict[str, tuple[Callable[[str], object], list[str]]] = {
        "URL": (lambda text: str(ModelAddress.parse(text)), [f"{URL}/3", "grpcs://[::1]:9/a%20b", "grpc://host/m"]),
        "board": (address_from_text, ["user@board:22", "[fe80::1%eth0]:22", "10.0.0.1"]),
        "batch": (BatchRange.parse, ["1:8:32", "8"]),
        "sha256": (trusted_engines, ["a" * 64]),
    }

    def reader(name: str, parse: Callable[[str], object], texts: list[str]) -> Reader:
        def read(path: Path) -> None:
            parse(path.read_bytes().decode("utf-8", "surrogateescape"))

        return Reader(name, "text", [text.encode() for text in texts], spoilt_text, read, 40, named="expected")

    return [reader(name, *kind) for name, kind in kinds.items()]
