"""Files that other tools make in environments of their own (`make strangers`), and how each is rightly read.

What an intake must do with each:

- `tf2onnx_resnet_9`, `tf2onnx_resnet_18`: Keras by tf2onnx, NHWC with a leading Transpose, batch norms and the stem's Pad fused by tf2onnx, a Pad of
  zeros around the pool behind a ReLU, SAME padding as pads [0, 0, 1, 1], MatMul and Softmax. Of opset 18 the mean is a ReduceMean over
  height and width behind a Transpose back to NHWC; the domain ai.onnx.ml is imported and not used.
- `tf2onnx_backbone`: the same without classifier: its only output, a map, is (batch, height, width, channels) behind a Transpose.
- `keras_resnet50v2`: keras.applications' ResNet50V2, opset 15, 94 MB, 96 pixels: a Pad of zeros around a pool *not* behind a ReLU, 17 normalisations as Mul
  and Add, pools of 1x1 with a stride of 2 as shortcuts; outputs and inputs named Identity:0 and keras_tensor_N.
- `tfmot_trained`: TensorFlow's QAT: uint8 Q/DQ on activations only, the first before the Transpose; weights are floats on a grid, without Q/DQ; logits.
- `modelopt_fp32`, `modelopt_fp16`: ModelOpt: symmetric int8 Q/DQ before convolutions and on one input of each Add, weights float behind Q/DQ, opset 19,
  the second with FP16 between two Casts.
- `nncf_performance`, `nncf_mixed`: NNCF for OpenVINO: int8 weights, uint8 of zero point zero behind a ReLU and int8 elsewhere, in the second with zero points.
- `pt2e_static`, `pt2e_trained`: TorchAO's PT2E by the new exporter, opset 20: uint8 activations with zero points, int8 weights per channel, float bias;
  the second quantizes what its convolutions share twice.
- `neural_compressor_qdq`, `neural_compressor_ops`: onnx-neural-compressor 1.0, with external data in NAME.onnx_data and a dozen imported domains; uint8
  with zero points, as Q/DQ with int32 biases, and as QLinear operators of com.microsoft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from stranger_makers import FREE
from stranger_readings import Reading

FILES = Path(__file__).parent.parent / "build" / "strangers"

_KERAS = Reading((64, 64), "predictions", 10, 9, "nhwc", scale=255, mean=(127.5,) * 3, std=(127.5,) * 3, softmax=True)

ELSEWHERE = {
    "tf2onnx_resnet_9": _KERAS,
    "tf2onnx_resnet_18": replace(_KERAS, opset=18),
    "tf2onnx_backbone": replace(_KERAS, opset=13, output="conv3_block1_out", classes=0, softmax=False),
    "keras_resnet50v2": replace(_KERAS, opset=15, output="Identity:0", size=(96, 96)),
    "tfmot_trained": replace(_KERAS, opset=13, output="quant_dense", softmax=False),
    "modelopt_fp32": replace(FREE, opset=19),
    "modelopt_fp16": replace(FREE, opset=19),
    "nncf_performance": replace(FREE, opset=13),
    "nncf_mixed": replace(FREE, opset=13),
    "pt2e_static": replace(FREE, opset=20),
    "pt2e_trained": replace(FREE, opset=20),
    "neural_compressor_qdq": replace(FREE, opset=13),
    "neural_compressor_ops": replace(FREE, opset=13),
}


def elsewhere(name: str) -> Elsewhere:
    """The file of this name; the test is skipped where `make strangers` has not made it."""
    path = FILES / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path.relative_to(FILES.parent.parent)} is not there: `make strangers` makes it")
    beside = path.with_suffix(".npz")
    if not beside.exists():
        return Elsewhere(path, ELSEWHERE[name], None, None)
    with np.load(beside) as kept:
        return Elsewhere(path, ELSEWHERE[name], kept["images"], kept["answers"])


def float_source() -> Path:
    """The float file that ModelOpt, NNCF and Neural Compressor quantized."""
    return elsewhere("modelopt_fp32").path.with_name("float.onnx")


@dataclass(frozen=True)
class Elsewhere:
    """A file, its right reading, and where its framework runs networks: images, uint8 (count, height, width, 3), and its answers to them.

    Answers are float32 (count, classes), after the softmax where the file ends with one; of a backbone, as it answers: its map.
    """

    path: Path
    reading: Reading
    images: NDArray[np.uint8] | None
    answers: NDArray[np.float32] | None
