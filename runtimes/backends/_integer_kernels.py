"""ONNX Runtime's integer kernels on the CPU: which graphs they run, without overflow, and which nodes they ran."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtimes.kernels import KernelCount, promises_integers
from runtimes.onnx_metadata import metadata_of
from runtimes.processor import processor
from runtimes.specs import PICTURE_SIDES, TensorSpec

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
INTEGER_CONVOLUTIONS, INTEGER_ADDITIONS = ("QLinearConv", "ConvInteger"), ("QLinearAdd",)
SIMULATED = "simulated as a GPU computes it, for TensorRT; --target cpu runs on integers"
KERNEL = "_kernel_time"
"""End of the names of a profile's events that are runs of kernels."""


def set_quantization(options: ort.SessionOptions, model: Path | bytes) -> str:
    """Set how a session on the CPU runs Q/DQ pairs; says it in words, where the file says what it was exported for.

    The pairs of a graph for processors become integer kernels. Where these would add two products in 16 bits, and
    saturate, they are told to be exact, at some cost in time (`session.x64quantprecision`, which changes nothing
    elsewhere).

    Other pairs are run as they are written. Our INT8 files for TensorRT need this no more (measured: 130 dB between the
    two), older ones and those of others do: onnxruntime turns biases inside of convolutions into INT32 with a scale of
    FP16, which overflows, and its fusions of pairs change the answer (measured: by up to 5 dB of SQNR).
    """
    metadata = metadata_of(model)
    if not promises_integers(metadata):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return SIMULATED if metadata.get("precision") == "int8" else ""
    if processor().has_int8_dot:
        return "on integers"
    options.add_session_config_entry("session.x64quantprecision", "1")
    return "on integers, by kernels that do not overflow without VNNI"


def count_kernels(model: Path | bytes, inputs: tuple[TensorSpec, ...], rows: int) -> KernelCount:
    """Run a graph once, on zeros, and count the kernels that ran, from onnxruntime's own profile."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    set_quantization(options, model)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, {spec.name: np.zeros(_shape(spec, rows), spec.dtype) for spec in inputs})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["name"]: event["args"]["op_name"] for event in events if event["name"].endswith(KERNEL)}
    operators = list(ran.values())
    convolutions, additions = (
        sum(operators.count(one) for one in kinds) for kinds in (INTEGER_CONVOLUTIONS, INTEGER_ADDITIONS)
    )
    return KernelCount(
        convolutions + sum(operators.count(one) for one in CONVOLUTIONS),
        convolutions,
        additions + operators.count("Add"),
        additions,
    )


def _shape(spec: TensorSpec, rows: int) -> list[int]:
    return [rows, *(size if isinstance(size, int) else PICTURE_SIDES[1] for size in spec.shape[1:])]
