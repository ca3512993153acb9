"""What `scripts/bench_cpu.py` measures: bare library calls and our runtimes, each in a process of its own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporter.verification.own_process import OwnProcess

Floats = NDArray[np.float32]
Call = Callable[[Floats], Floats]
AT_ONCE = 8
Kind = Literal["onnxruntime", "openvino", "torch", "torch best", "runtime"]


@dataclass(frozen=True)
class Contender:
    """A way to run a network.

    Attributes:
        kind: a bare library or `runtime`, ours.
        path: the model file or, for ours, the bundle; of torch the name of a torchvision model.
        backend: of ours.
        dtype: whose roof its share is of.
    """

    name: str
    kind: Kind
    path: str
    dtype: str
    backend: str = ""


def open_call(contender: Contender) -> Call:
    """The call that runs float32 (images, channels, height, width) and gives logits, as the library's users write it."""
    return {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "torch": _torch,
        "torch best": _torch_best,
        "runtime": _runtime,
    }[contender.kind](contender)


def _onnxruntime(contender: Contender) -> Call:
    import onnxruntime as ort

    session = ort.InferenceSession(contender.path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def _openvino(contender: Contender) -> Call:
    from runtimes.backends._openvino_package import ov

    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(contender.path), "CPU", options).create_infer_request()
    return lambda images: np.array(request.infer([images], share_inputs=True)[0])


def _torch(contender: Contender) -> Call:
    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(contender.path).eval()

    def call(images: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images)).numpy())

    return call


def _torch_best(contender: Contender) -> Call:
    """channels_last, BF16 by autocast where the processor has it, torch.compile."""
    import torch
    import torchvision

    from runtimes.processor import processor

    torch.manual_seed(0)
    module: Any = torch.compile(
        torchvision.models.get_model(contender.path).eval().to(memory_format=torch.channels_last)
    )

    def call(images: Floats) -> Floats:
        tensor = torch.from_numpy(images).to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=processor().has_bf16):
            return np.asarray(module(tensor).float().numpy())

    return call


def _runtime(contender: Contender) -> Call:
    from runtimes import open_runtime

    runtime = open_runtime(contender.path, contender.backend)
    return lambda images: runtime.run({"input": images})["logits"]


class Measured:
    """A contender, opened in the process that it is measured in (see `exporter.verification.own_process`)."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def open(self, first: Floats) -> None:
        """Open it, and run the first pictures: torch.compile compiles then."""
        self._call = open_call(self._contender)
        self._call(first)

    def seconds(self, images: Floats, at_least_s: float) -> list[float]:
        """The seconds of each call with these images."""
        taken: list[float] = []
        gc.collect()
        while sum(taken) < at_least_s:
            start = time.perf_counter()
            self._call(images)
            taken.append(time.perf_counter() - start)
        return taken

    def logits(self, images: Floats) -> Floats:
        return np.concatenate([self._call(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)])


class Worker:
    """A contender's process. `problem` says why it cannot be measured any more; empty where it can."""

    def __init__(self, contender: Contender, first: Floats) -> None:
        self.contender, self.problem, self._first = contender, "", first
        self._open()

    def open_again(self) -> None:
        """Open it in another process, whose memory lies elsewhere; torch.compile, which takes a minute, stays open."""
        if self.contender.kind != "torch best":
            self.close()
            self._open()

    def seconds(self, images: Floats, at_least_s: float) -> list[float]:
        """The seconds of each call with these images; none where it failed."""
        return self._ask("seconds", images, at_least_s) or []

    def logits(self, images: Floats) -> Floats:
        return np.asarray(self._ask("logits", images))

    def close(self) -> None:
        self._process.close()

    def _open(self) -> None:
        self._process = OwnProcess()
        self._process.keep(Measured, self.contender)
        self._ask("open", self._first)

    def _ask(self, method: str, *arguments: object) -> Any:
        verdict, reason, value = self._process.ask(method, *arguments)
        if verdict != "ok":
            self.problem = reason
        return value


def contenders(model: str, files: dict[str, Path]) -> list[Contender]:
    """All that is measured of a torchvision model.

    Args:
        files: the bundles `fp32`, `int8` and `int8-cpu`, and what others made: `U8S8`, `S8S8`, `QOperator` and `NNCF`.
    """
    bare: Any = lambda name, kind, file, dtype: Contender(name, kind, str(file), dtype)  # noqa: E731
    fp32 = files["fp32"] / "model.onnx"
    found = [
        bare("PyTorch, eager", "torch", model, "fp32"),
        bare("PyTorch, its best", "torch best", model, "bf16"),
        bare("onnxruntime, FP32", "onnxruntime", fp32, "fp32"),
        *(
            bare(f"onnxruntime, its static quantization, {name}", "onnxruntime", files[name], "int8")
            for name in ("U8S8", "S8S8", "QOperator")
            if name in files
        ),
        bare("OpenVINO, FP32", "openvino", fp32, "fp32"),
        *(bare("OpenVINO, quantized by NNCF", "openvino", files["NNCF"], "int8") for _ in files.keys() & {"NNCF"}),
    ]
    for precision, dtype in (("fp32", "fp32"), ("int8", "int8"), ("int8-cpu", "int8")):
        for backend in ("onnxruntime", "openvino"):
            label = {"fp32": "FP32", "int8": "INT8 for TensorRT", "int8-cpu": "INT8, --target cpu"}[precision]
            found.append(Contender(f"ours, {backend}, {label}", "runtime", str(files[precision]), dtype, backend))
    return [*found, Contender("ours, pytorch, FP32", "runtime", str(files["fp32"]), "fp32", "pytorch")]
