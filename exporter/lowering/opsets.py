"""The ONNX opsets that each precision allows."""

from __future__ import annotations

from runtimes.errors import PlanError

OPSETS = (19, 20)
"""20 is the newest opset that TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.17 read; FP16 scales of Q/DQ need 19."""
BF16_OPSET = 22
"""The first opset whose Conv, MaxPool and GlobalAveragePool take BF16."""


def choose_opset(precision: str, opset: int) -> int:
    """`opset`, or the newest that the precision allows if it is 0.

    Raises:
        PlanError: the precision does not allow it.
    """
    allowed = (BF16_OPSET,) if precision == "bf16" else OPSETS
    if opset == 0:
        return allowed[-1]
    if opset in allowed:
        return opset
    if precision == "bf16":
        raise PlanError(
            f"expected opset {BF16_OPSET} for bf16, got {opset}; "
            "ONNX has no BF16 convolution before it, leave --opset out"
        )
    raise PlanError(
        f"expected an opset among {', '.join(map(str, OPSETS))}, got {opset}; TensorRT 10.3 reads none above 20"
    )
