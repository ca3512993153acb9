"""What an onnxruntime that truncates FP16 pairs on the CPU (before 1.30: Python 3.10 has no newer one) does not run."""

from __future__ import annotations

import pytest

from runtimes.backends.onnxruntime import rounds_fp16

needs_rounding = pytest.mark.skipif(
    not rounds_fp16(), reason="onnxruntime before 1.30 truncates FP16 pairs on the CPU, so it runs no INT8 file"
)
RUNNABLE = "int8" if rounds_fp16() else "fp16"
"""A precision whose file runs here, where any would do."""


def runs_here(precision: str) -> bool:
    """Whether onnxruntime runs the file of this precision on the CPU; it has no BF16 convolution."""
    return precision != "bf16" and (precision != "int8" or rounds_fp16())
