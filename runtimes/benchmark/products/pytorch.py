"""PyTorch: FP32 (without TF32), BF16, FP16 on a GPU, and INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from runtimes.processor import processor


def products(provider: str, size: int, threads: int) -> Iterator[tuple[str, Callable[[], None]]]:
    if provider == "cuda" and not torch.cuda.is_available():
        return
    torch.set_num_threads(threads)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
    if provider == "cpu":
        del kinds["fp16"]
        if not processor().has_bf16:
            del kinds["bf16"]  # emulated, and slower than FP32
    for name, kind in kinds.items():
        first, second = (torch.ones((size, size), dtype=kind, device=provider) for _ in range(2))
        yield name, _call(torch._int_mm if name == "int8" else torch.mm, first, second, provider)


def _call(multiply: Callable[..., object], first: object, second: object, provider: str) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            multiply(first, second)
        if provider == "cuda":
            torch.cuda.synchronize()

    return call
