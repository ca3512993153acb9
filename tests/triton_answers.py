"""Repositories for a real Triton server, what it answers over HTTP and gRPC, and what the same library answers here."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from triton_server import TritonServer

from exporter.deployment.triton.config import Serving
from exporter.deployment.triton.models import TritonPlan, triton_models
from exporter.deployment.triton.repository import write_repository
from runtimes.bundle import Bundle

BACKENDS = {"plan": "tensorrt", "openvino": "openvino"}
"""Of the models that onnxruntime does not run."""


def written(bundle: Bundle, name: str, repository: Path, *, version: int = 1, ensemble: bool = False) -> Path:
    backend = BACKENDS.get(name, "onnxruntime")
    serving = Serving() if name in ("openvino", "fixed") else Serving(max_delay_us=100)
    plan = TritonPlan((bundle,), (backend,), name=name, serving=serving, ensemble=ensemble)
    (folder, *_) = write_repository(triton_models(plan), repository, version)
    return folder.parent


def over_http(server: TritonServer, model: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """The logits by HTTP and JSON."""
    kind = {"float32": "FP32", "uint8": "UINT8"}[inputs.dtype.name]
    tensor = {"name": "input", "shape": inputs.shape, "datatype": kind, "data": inputs.ravel().tolist()}
    output = posted(server, model, {"inputs": [tensor]})["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def posted(server: TritonServer, model: str, request: dict[str, Any]) -> Any:
    url = f"http://{server.http}/v2/models/{model}/infer"
    with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=60) as answer:
        return json.loads(answer.read())


def over_grpc(server: TritonServer, model: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """The logits by gRPC."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.grpc) as client:
        logits: NDArray[np.float32] = client.infer(model, [tensor_of(inputs)]).as_numpy("logits")
    return logits


def tensor_of(inputs: NDArray[Any]) -> Any:
    from tritonclient.grpc import InferInput

    tensor = InferInput("input", inputs.shape, {"float32": "FP32", "uint8": "UINT8"}[inputs.dtype.name])
    tensor.set_data_from_numpy(inputs)
    return tensor


def in_process(bundle: Bundle, name: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """What the stand-in's library answers here, with the options that it has there."""
    import onnxruntime
    import openvino

    path = bundle.file("model.onnx")
    if BACKENDS.get(name) == "openvino":
        compiled = openvino.Core().compile_model(str(path), "CPU")
        return np.array(compiled({"input": inputs})["logits"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.array(session.run(["logits"], {"input": inputs})[0])
