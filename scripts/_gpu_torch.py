"""What the device can do at most, and how near PyTorch comes to it at its best."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from _gpu_timing import Job, Record, attempt, figure, median_ms
from torch.fx.experimental.optimization import fuse

Call = Callable[[], object]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BATCHES = (1, 8, 32, 128, 256)
MODELS = ("resnet50", "resnet18", "resnet101", "resnext50_32x4d")
SIDE = 8192
"""Of the matrices whose product is the roof: 1.1 TFLOP."""
COPIED = 2 << 30
"""Bytes that are copied to measure the memory's rate: many times what the caches hold."""
COMPILED = "fp16, torch.compile"
GRAPHED = "fp16, CUDA graph"
VARIANTS = (
    GRAPHED,
    "eager fp32",
    "fp16",
    "autocast fp16",
    "eager tf32",
    "bf16, CUDA graph",
    "bf16",
    "autocast bf16",
)
SECONDS_EACH, SECONDS_COMPILED, SECONDS_AT_LEAST = 0.4, 15.0, 2.0
"""How long a variant is measured; what time must be left to begin one that is compiled, and any other."""


def waiting(call: Call, device: str) -> Call:
    """The call, which then waits for the device."""
    if device == "cpu":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


# --- the roof ---


def roofline(job: Job, record: Record) -> None:
    """The rate of a large matrix product in each type, in TFLOP/s, and of a copy on the device, in GB/s, bytes read and written."""
    side, copied = (256, 1 << 20) if job.small else (SIDE, COPIED)
    for name in DTYPES:
        record.put(attempt(_product, name, side, job.device), "roofline", f"{name}_tflops")
    record.put(attempt(_copy, copied, job.device), "roofline", "copy_gb_per_s")
    record.put({"matrix": side, "copied_bytes": copied}, "roofline", "sizes")


def _product(name: str, side: int, device: str) -> float:
    torch.manual_seed(0)
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[name]) for _ in range(2))
    out = torch.empty_like(left)
    with tf32(on=name == "tf32"):
        taken = median_ms(waiting(lambda: torch.mm(left, right, out=out), device), seconds=0.5)
    return figure(2 * side**3 / (taken * 1e-3) / 1e12)


def _copy(size: int, device: str) -> float:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return figure(2 * size / (median_ms(waiting(lambda: target.copy_(source), device), seconds=0.5) * 1e-3) / 1e9)


class tf32(AbstractContextManager[None]):  # reads as a setting
    """TF32 in products and convolutions, or not, in the block; cuDNN tries its algorithms."""

    def __init__(self, *, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self._on else "highest")
        self._flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=self._on)
        self._flags.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._flags.__exit__(*error)
        torch.set_float32_matmul_precision(self._before)


@functools.lru_cache
def _roof_ms(model: str, rows: int, tflops: float, copy_gb_per_s: float, side: int) -> float:
    """The least time for a batch in FP16, in milliseconds: for each convolution, pooling and product the larger of its operations over the
    product's rate and of its bytes, inputs, weights and outputs once each, over the copy's rate. Additions and ReLUs are taken to cost
    nothing, as where they are fused."""
    rate, copied, width = tflops * 1e12, copy_gb_per_s * 1e9, torch.float16.itemsize
    seconds = 0.0

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal seconds
        weights = sum(parameter.numel() for parameter in module.parameters())
        each = module.weight[0].numel() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) else 0
        moved = width * (inputs[0].numel() + output.numel() + weights)
        seconds += max(2 * output.numel() * each / rate, moved / copied)

    with torch.device("meta"), torch.inference_mode():
        module = torchvision.models.get_model(model, weights=None).eval()
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | torch.nn.MaxPool2d):
                layer.register_forward_hook(add)
        module(torch.empty(rows, 3, side, side))
    return figure(seconds * 1e3)


# --- PyTorch's best ---


def speed(job: Job, record: Record) -> None:
    """Milliseconds of each variant of each model and batch, device alone: what matters most comes first, what does not fit in the time is
    left out. And for each model and batch the fastest variant in FP16."""
    models, batches, side = (("resnet18",), (1, 2), 32) if job.small else (MODELS, BATCHES, 224)
    first, others, soon = models[0], models[1:], (batches[0], batches[-2])
    plan = [(first, rows, name) for name in VARIANTS for rows in batches]
    plan += [(first, rows, COMPILED) for rows in soon]
    plan += [(model, rows, GRAPHED) for model in others for rows in batches]
    plan += [(first, rows, COMPILED) for rows in batches if rows not in soon]
    plan += [(model, rows, name) for model in others for name in ("eager fp32", "bf16, CUDA graph") for rows in batches]
    roofs = _roofs(Path(job.record).with_name("roofline.json"))
    for model, rows, name in plan:
        names = ("pytorch", model, str(rows))
        if job.seconds_left < (SECONDS_COMPILED if name == COMPILED else SECONDS_AT_LEAST):
            record.put("not measured: no time was left", *names, "ms", name)
            continue
        seconds = 0.01 if job.small else SECONDS_EACH
        record.put(attempt(_variant_ms, model, rows, name, side, job.device, seconds), *names, "ms", name)
        times = record.found["pytorch"][model][str(rows)]["ms"]
        record.put(attempt(_best, times, roofs, model, rows, side), *names, "best_fp16")


def _roofs(path: Path) -> dict[str, float]:
    """What the roof's step found, if it was done."""
    found = json.loads(path.read_text()).get("roofline", {}) if path.exists() else {}
    return {name: rate for name, rate in found.items() if isinstance(rate, float)}


def _best(times: dict[str, Any], roofs: dict[str, float], model: str, rows: int, side: int) -> dict[str, Any] | None:
    """The fastest variant in FP16, its images a second, and its share of the roof."""
    measured = {name: ms for name, ms in times.items() if isinstance(ms, float) and "fp16" in name}
    if not measured:
        return None
    name = min(measured, key=lambda one: measured[one])
    best: dict[str, Any] = {"variant": name, "images_per_s": figure(rows / measured[name] * 1e3)}
    if {"fp16_tflops", "copy_gb_per_s"} <= roofs.keys():
        least = _roof_ms(model, rows, roofs["fp16_tflops"], roofs["copy_gb_per_s"], side)
        best |= {"roof_ms": least, "share_of_roof": figure(least / measured[name])}
    return best


def _variant_ms(model: str, rows: int, name: str, side: int, device: str, seconds: float) -> float:
    call, settings = variant(model, rows, name, side, device)
    with settings, torch.inference_mode():
        return median_ms(waiting(call, device), seconds=seconds)


def variant(model: str, rows: int, name: str, side: int, device: str) -> tuple[Call, AbstractContextManager[Any]]:
    """A call that runs a batch that is on the device already, and the settings that it is to run under.

    All but "eager fp32" are in channels last; those that hold FP16 or BF16 weights have their batch norms folded into the convolutions.
    """
    kind, module = _kind(name), _module(model, name, device)
    inputs = torch.randn(rows, 3, side, side, device=device, dtype=_held(name)).contiguous(memory_format=_layout(name))
    autocast = torch.autocast(device, DTYPES[kind]) if "autocast" in name else nullcontext()
    if name == COMPILED:
        torch._dynamo.reset()
        mode = "reduce-overhead" if device == "cuda" else "default"
        module = torch.compile(module, mode=mode, dynamic=False)  # type: ignore[assignment]  # it can be called alike

    def call() -> object:
        with autocast:
            return module(inputs)

    settings = tf32(on=kind == "tf32")
    return (_graphed(call, settings) if name.endswith("CUDA graph") else call), settings


@functools.lru_cache(maxsize=1)
def _module(model: str, name: str, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torchvision.models.get_model(model, weights=None).eval()
    if _held(name) is not torch.float32:
        module = fuse(module)
    moved: torch.nn.Module = module.to(device, _held(name), memory_format=_layout(name))
    return moved


def _kind(name: str) -> str:
    return name.removeprefix("eager ").removeprefix("autocast ").split(",")[0]


def _held(name: str) -> torch.dtype:
    """The type that the weights are held in."""
    return torch.float32 if "autocast" in name else DTYPES[_kind(name)]


def _layout(name: str) -> torch.memory_format:
    return torch.contiguous_format if name == "eager fp32" else torch.channels_last


def _graphed(call: Call, settings: AbstractContextManager[Any]) -> Call:
    """The call as a CUDA graph (PyTorch's notes on CUDA semantics, "CUDA Graphs"): warmed up in a stream of its own, then captured."""
    if not torch.cuda.is_available():
        raise RuntimeError("a CUDA graph needs a GPU")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # of torch
    stream.wait_stream(torch.cuda.current_stream())
    with settings, torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay
