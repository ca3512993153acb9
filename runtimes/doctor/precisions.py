"""Which backend computes which precision here, and how; docs/cpu.md and docs/measured.md say where it is from."""

from __future__ import annotations

import re

from runtimes.doctor.facts import BackendFacts, Facts

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
INTEGERS = "integers with --target cpu"
MEASURED = "3.5 times FP32 where it was measured"
"""A ResNet-50 in ONNX Runtime and OpenVINO on an EPYC with VNNI (docs/cpu.md); on AMX and Arm nothing was."""
BF16_TARGET, OPSET_22_TENSORRT = 80, (10, 3)
"""BF16 is of Ampere and newer; and TensorRT up to 10.3 reads no opset 22, in which a BF16 bundle is written."""


def precisions_of(facts: Facts, backend: BackendFacts) -> dict[str, str]:
    """The precisions that a backend takes, each with how it computes them where that is not as one would think."""
    if backend.name in ("tensorrt", "tensorrt-rtx"):
        return _on_gpu(facts, backend)
    if backend.name == "onnxruntime":
        return {"fp32": "", "fp16": "", "int8": INTEGERS}
    if backend.name == "openvino":
        return {
            "fp32": "",
            "fp16": "in fp32",
            "bf16": "" if facts.system.processor.has_bf16 else "in fp32",
            "int8": "" if facts.system.processor.has_int8_dot else f"in fp32; {INTEGERS}",
        }
    if backend.name == "pytorch":
        return {"fp32": "the reference alone"}
    return {}  # a server's own


def _on_gpu(facts: Facts, backend: BackendFacts) -> dict[str, str]:
    found = dict.fromkeys(PRECISIONS, "")
    targets = [int(gpu.target.removeprefix("sm") or 0) for gpu in facts.nvidia.gpus]
    numbers = tuple(map(int, re.findall(r"\d+", backend.version)[:2]))
    is_old = backend.name == "tensorrt" and numbers and numbers <= OPSET_22_TENSORRT
    if is_old or (targets and max(targets) < BF16_TARGET):
        del found["bf16"]
    return found


def instructions_text(facts: Facts) -> str:
    """What the processor multiplies 8-bit integers and BF16 with, and what that brings."""
    names = {
        "avx_vnni": "AVX-VNNI",
        "avx512_vnni": "AVX-512 VNNI",
        "amx_int8": "AMX",
        "asimddp": "dot product",
        "i8mm": "i8mm",
    }
    known = facts.system.processor
    found = [text for flag, text in names.items() if flag in known.flags]
    if found:
        gain = MEASURED if "avx512_vnni" in known.flags else "how fast is not measured"
        return f"INT8 on {', '.join(found)} ({gain})"
    if not known.flags:
        return "its instructions are not known"
    if "avx2" in known.flags:
        return "INT8 without VNNI adds pairs in 16 bits, which may overflow (docs/cpu.md)"
    return "INT8 has no dot product, and is no faster than FP32"
