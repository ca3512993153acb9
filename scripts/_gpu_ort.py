"""How fast ONNX Runtime runs a bundle's file on a GPU, beside PyTorch's best, in one process and interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _gpu_torch as pytorch  # first: with torch the CUDA and cuDNN libraries are loaded that onnxruntime needs
import numpy as np
import onnxruntime as ort
import torch
from _gpu_timing import Job, Record, attempt, figure, interleaved_ms

from runtimes.backends._cuda_provider import EXACT, GRAPH, GRAPH_ID, NHWC

OPTIONS: dict[str, dict[str, str]] = {
    "NCHW": EXACT,
    "NHWC": NHWC,
    "NCHW, CUDA graph": {**EXACT, "enable_cuda_graph": "1"},
    "NHWC, CUDA graph": GRAPH,
    "NHWC, CUDA graph, exhaustive": {**GRAPH, "cudnn_conv_algo_search": "EXHAUSTIVE"},
}
"""Settings of the CUDA provider: `cuda`, `cuda-nhwc` and `cuda-graph` of the runtime among them."""
ENOUGH = 0.9
"""Of PyTorch's best speed: what FP16 is wanted to reach."""
PEERS = (pytorch.GRAPHED, pytorch.COMPILED)
SECONDS_AT_LEAST = 12.0


def speed(job: Job, record: Record) -> None:
    """For FP16 bundles at each batch: milliseconds of every setting and of PyTorch, device alone, and the ratio of the best two."""
    models, batches, side = (("resnet18",), (1, 2), 32) if job.small else (pytorch.MODELS, pytorch.BATCHES, 224)
    for model in models:
        path = Path(job.bundles) / f"{'resnet20' if job.small else model}-fp16" / "model.onnx"
        for rows in batches:
            names = ("onnxruntime", model, str(rows))
            if not path.exists():
                record.put({"failed": f"there is no bundle {path.parent.name}"}, *names)
            elif job.seconds_left < SECONDS_AT_LEAST:
                record.put("not measured: no time was left", *names)
            else:
                record.put(attempt(_compared, path, model, rows, side, job), *names)


def _compared(path: Path, model: str, rows: int, side: int, job: Job) -> dict[str, Any]:
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, Any] = {}
    compiles = job.seconds_left > 2 * pytorch.SECONDS_COMPILED + SECONDS_AT_LEAST
    with pytorch.tf32(on=False), torch.inference_mode():
        for name in PEERS if compiles and model == pytorch.MODELS[0] else PEERS[:1]:
            _add(calls, failed, f"PyTorch, {name}", partial(_pytorch_call, model, rows, name, side, job.device))
        for name, options in OPTIONS.items():
            if job.seconds_left < SECONDS_AT_LEAST:
                failed[name] = "not measured: no time was left"
                continue
            _add(calls, failed, name, partial(session_call, path, rows, options, job.device))
        times = interleaved_ms(calls, rounds=3 if job.small else 9, repeats=2 if job.small else max(5, 64 // rows))
    ours = {name: ms for name, ms in times.items() if not name.startswith("PyTorch")}
    theirs = {name: ms for name, ms in times.items() if name.startswith("PyTorch")}
    found: dict[str, Any] = {"ms": times | failed}
    if ours:
        found["best"] = min(ours, key=lambda name: ours[name])
        found["images_per_s"] = figure(rows / ours[found["best"]] * 1e3)
    if ours and theirs:
        found["speed_over_pytorch_s_best"] = figure(min(theirs.values()) / min(ours.values()))
        found["within_10_percent"] = found["speed_over_pytorch_s_best"] >= ENOUGH
    return found


def _add(calls: dict[str, Callable[[], object]], failed: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
    """Add the call that `make` gives, once it has run, or what it failed with."""

    def checked() -> Callable[[], object]:
        call: Callable[[], object] = make()
        call()
        return call

    made = attempt(checked)
    if callable(made):
        calls[name] = made
    else:
        failed[name] = made


def _pytorch_call(model: str, rows: int, name: str, side: int, device: str) -> Callable[[], object]:
    call, _ = pytorch.variant(model, rows, name if device == "cuda" else "fp16", side, device)
    return pytorch.waiting(call, device)


def session_call(path: Path, rows: int, options: dict[str, str], device: str) -> Callable[[], object]:
    """A call that runs a batch that is on the device, and leaves the outputs there: IO binding with memory at one place, which a CUDA graph
    needs, and an annotation that keeps the graph apart from that of other sizes."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    provider: Any = "CPUExecutionProvider"
    if device == "cuda":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = ("CUDAExecutionProvider", options)
    session = ort.InferenceSession(path, settings, providers=[provider], enable_fallback=0)
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"it runs on {session.get_providers()[0]}: the CUDA provider's libraries did not load")
    binding, run_options = session.io_binding(), ort.RunOptions()
    if options.get("enable_cuda_graph") == "1":
        run_options.add_run_config_entry(GRAPH_ID, str(rows))
    generator = np.random.default_rng(0)
    kept = []
    for value in session.get_inputs():
        array = generator.standard_normal((rows, *value.shape[1:])).astype(_dtype(value))
        kept.append(ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        binding.bind_ortvalue_input(value.name, kept[-1])
    for value in session.get_outputs():
        kept.append(ort.OrtValue.ortvalue_from_shape_and_type([rows, *value.shape[1:]], _dtype(value), device, 0))
        binding.bind_ortvalue_output(value.name, kept[-1])
    binding.synchronize_inputs()

    def call() -> object:
        session.run_with_iobinding(binding, run_options)
        return kept

    return call


def _dtype(value: Any) -> Any:
    return {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
