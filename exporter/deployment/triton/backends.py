"""Triton's backends that run a bundle: which bundles each may serve, where it runs them, and how it takes batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtimes.errors import UnknownName
from runtimes.manifest import Manifest

GPU, CPU, EITHER = "KIND_GPU", "KIND_CPU", "KIND_AUTO"
BY_ENGINE = "build an engine on the server's GPU (resnet-deploy build BUNDLE), and take --backend tensorrt"


@dataclass(frozen=True)
class ServerBackend:
    """A backend of Triton's.

    Attributes:
        batches: the server may put requests together into batches. Without, each request is a batch of its own, and
            shapes begin with its size.
        refusal: why it does not serve the bundle of a manifest, with the remedy; empty if it does.
        kind: the `instance_group`'s, for the bundle of a manifest.
    """

    name: str
    batches: bool
    refusal: Callable[[Manifest], str]
    kind: Callable[[Manifest], str]


def server_backend(name: str) -> ServerBackend:
    """The backend of this name.

    Raises:
        UnknownName: there is none.
    """
    if name not in BACKENDS:
        raise UnknownName("backend of Triton", name, BACKENDS)
    return BACKENDS[name]


def _has(manifest: Manifest, operator: str, dtype: str) -> bool:
    return dtype in manifest.graph.types.get(operator, {})


def _tensorrt_refusal(manifest: Manifest) -> str:
    if manifest.kernels is None:
        return ""
    return (
        f"the bundle is for {manifest.target}, and TensorRT refuses its unsigned numbers; take --backend onnxruntime "
        "or openvino, or export it again with --target tensorrt"
    )


def _onnxruntime_refusal(manifest: Manifest) -> str:
    """Two faults that nothing in a Triton configuration turns off: versions before 1.30 truncate where they quantize
    FP16 (onnxruntime pull request 32452), and from 1.23 on the bias of a convolution with FP16 scales is quantized
    with a product of scales that FP16 does not hold (its optimizer WeightBiasQuantization)."""
    if _has(manifest, "QuantizeLinear", "FLOAT16") or _has(manifest, "DequantizeLinear", "FLOAT16"):
        return (
            "its INT8 has FP16 scales, with which ONNX Runtime as Triton runs it cuts off what it should round (before "
            f"1.30) and spoils the biases of convolutions (from 1.23 on); {BY_ENGINE}, or for a server without a GPU "
            "export it again with --int8 --target cpu"
        )
    if _has(manifest, "Conv", "BFLOAT16"):
        return f"ONNX Runtime has no BF16 convolution on the CPU, and none was proven on a GPU; {BY_ENGINE}"
    return ""


def _onnxruntime_kind(manifest: Manifest) -> str:
    """Integers for a processor run there, and FP16 where it is fast; all else where the server has something."""
    if manifest.kernels is not None:
        return CPU
    return GPU if _has(manifest, "Conv", "FLOAT16") else EITHER


def _openvino_refusal(manifest: Manifest) -> str:
    if _has(manifest, "Conv", "BFLOAT16"):
        return f"no processor without BF16 would compute as the bundle says; {BY_ENGINE}, or export it in fp32"
    return ""


# openvino batches nothing: Triton's backend compiles for the largest batch alone, takes no other one unless it pads
# each, and pads wrongly where several requests fill a batch (openvino_backend, openvino.cc, as of August 2026).
BACKENDS = {
    one.name: one
    for one in (
        ServerBackend("tensorrt", True, _tensorrt_refusal, lambda _: GPU),
        ServerBackend("onnxruntime", True, _onnxruntime_refusal, _onnxruntime_kind),
        ServerBackend("openvino", False, _openvino_refusal, lambda _: CPU),
    )
}
