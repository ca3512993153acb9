"""Files that PyTorch's old exporter and onnxruntime's quantizer make, here and now, in seconds."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from stranger_graphs import SIZE, Made, caffe_bgr, keras_v2, tensorflow_nhwc
from stranger_networks import CLASSES, TinyResNet, settled
from stranger_readings import Reading, pictures
from torch import Tensor, nn
from torch.nn import functional

TORCH = Reading(SIZE, "logits", CLASSES, 17, batch=1)
FREE = replace(TORCH, batch=None)


def legacy(opset: int = 17, batch: int | None = 1, network: nn.Module | None = None) -> Made:
    """A residual network by PyTorch's old exporter (TorchScript), for a fixed batch, or None for a free one.

    To be met: batch norms folded into convolutions by the exporter; weights named onnx::Conv_42; constants as nodes; with a fixed batch a Reshape
    to the constant [1, -1].
    """
    reading = replace(TORCH, opset=opset, batch=batch)
    network = network or settled(TinyResNet(), reading)
    return Made(_exported(network, reading), reading, network)


def legacy_resnet18(opset: int = 17, batch: int | None = 1) -> Made:
    """torchvision's ResNet-18 of 10 classes and 64 pixels by the old exporter: 45 MB, some seconds."""
    import torchvision

    network = torchvision.models.resnet18(weights=None, num_classes=CLASSES)
    return legacy(opset, batch, settled(network, replace(TORCH, opset=opset)))


def legacy_training(opset: int = 17) -> Made:
    """The same export of a network left in training mode: BatchNormalization with training_mode of 1, and a Dropout of ratio 0.3 that drops."""
    reading = replace(TORCH, opset=opset, batch=4)
    network = settled(TinyResNet(), reading)
    model = _exported(network.train(), reading, training=torch.onnx.TrainingMode.TRAINING)
    return Made(model, reading, network.eval())


def several_outputs() -> Made:
    """An export with a free batch and three outputs: `logits`, `embedding` (batch, 32), and `map`, (batch, 32, 8, 8)."""
    network = settled(TinyResNet(), FREE)
    model = _exported(_Several(network).eval(), FREE, outputs=["map", "embedding", "logits"])
    return Made(model, FREE, network)


def own_normalisation() -> Made:
    """An export that takes R, G, B of 0..255 and begins with its own normalisation: Div by 255, Sub and Div; a free batch."""
    network = settled(TinyResNet(), FREE)
    reading = replace(FREE, scale=255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    whole = _Normalising(network).eval()
    return Made(_exported(whole, reading), reading, whole)


def class_index() -> Made:
    """An export whose only output is the index of the class, int64 (batch): an ArgMax."""
    network = settled(TinyResNet(), FREE)
    return Made(
        _exported(_Index(network).eval(), FREE, outputs=["class"]), replace(FREE, output="class", classes=0), None
    )


def external_data(folder: Path, name: str = "model.onnx") -> Path:
    """`legacy()` with all weights in `weights/model.bin` beside the file, which it returns; a location in a folder below is allowed."""
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        legacy().model, folder / name, save_as_external_data=True, location="weights/model.bin", size_threshold=0
    )
    return folder / name


def qoperator(opset: int = 17) -> Made:
    """onnxruntime.quantization in the format QOperator: QLinearConv, and QLinearAdd, QGemm and the like of the domain com.microsoft; uint8."""
    from onnxruntime.quantization import QuantFormat, QuantType

    return _quantized(opset, quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8)


def qdq_uint8(opset: int = 17) -> Made:
    """onnxruntime.quantization as it was long called for CPUs: Q/DQ, uint8 activations with zero points other than zero, one scale per tensor.

    To be met: both inputs of an Add quantized, int32 biases behind a DequantizeLinear, the weights stored as int8.
    """
    from onnxruntime.quantization import QuantType

    return _quantized(opset, activation_type=QuantType.QUInt8)


def qdq_int8(opset: int = 17) -> Made:
    """onnxruntime.quantization for TensorRT: Q/DQ, symmetric int8 activations and weights with a scale per channel."""
    from onnxruntime.quantization import QuantType

    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    return _quantized(opset, activation_type=QuantType.QInt8, per_channel=True, extra_options=symmetric)


def qat_torch(steps: int = 3) -> Made:
    """Quantization-aware training of PyTorch (torch.fake_quantize) through the old exporter, opset 17, free batch: trained scales.

    To be met: symmetric int8 Q/DQ before each convolution and the classifier, and per channel behind its float weight; zero points that go through
    a Cast from int32; initializers that are Identity nodes of others equal to them; each batch norm unfused behind its convolution.
    """
    network = settled(_FakeQuantized.all_over(TinyResNet()), FREE)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for step in range(steps):
        images = torch.from_numpy(FREE.network_input(pictures(8, SIZE, seed=200 + step)))
        optimizer.zero_grad()
        functional.cross_entropy(network(images), torch.arange(8) % CLASSES).backward()  # type: ignore[no-untyped-call]  # torch does not type it
        optimizer.step()
    network.eval()
    return Made(_exported(network, FREE, do_constant_folding=False), FREE, network)


# What every test run can make, by name; each takes no argument.
MAKERS: dict[str, Callable[[], Made]] = {
    "tensorflow_nhwc": tensorflow_nhwc,
    "keras_v2": keras_v2,
    "caffe_bgr": caffe_bgr,
    "caffe_bgr_ceil": lambda: caffe_bgr(10),
    "legacy_11": lambda: legacy(11),
    "legacy_17": legacy,
    "legacy_free": lambda: legacy(17, None),
    "several_outputs": several_outputs,
    "own_normalisation": own_normalisation,
    "qoperator": qoperator,
    "qdq_uint8": qdq_uint8,
    "qdq_int8": qdq_int8,
    "qat_torch": qat_torch,
}


@functools.cache
def _once(name: str) -> Made:
    return MAKERS[name]()


def made(name: str) -> Made:
    """What the maker of this name makes, made once in a test process; the model is a copy, the network is shared and not to be changed."""
    kept = _once(name)
    model = onnx.ModelProto()
    model.CopyFrom(kept.model)
    return replace(kept, model=model)


def _exported(
    network: nn.Module, reading: Reading, outputs: list[str] | None = None, **options: Any
) -> onnx.ModelProto:
    """What the old exporter writes; the input is `input`."""
    names = outputs or [reading.output]
    free = None if reading.batch else {name: {0: "batch"} for name in ("input", *names)}
    images = torch.from_numpy(reading.network_input(pictures(reading.batch or 2, reading.size)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter is an old one
        torch.onnx.export(
            network,
            (images,),
            Path(folder) / "model.onnx",
            opset_version=reading.opset,
            dynamo=False,
            input_names=["input"],
            output_names=names,
            dynamic_axes=free,
            **options,
        )
        return onnx.load(Path(folder) / "model.onnx")


def _quantized(opset: int, **options: Any) -> Made:
    from onnxruntime.quantization import quant_pre_process, quantize_static

    made = legacy(opset, None)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, prepared, after = (Path(folder) / name for name in ("float.onnx", "prepared.onnx", "quantized.onnx"))
        onnx.save(made.model, before)
        quant_pre_process(before, prepared)
        quantize_static(prepared, after, _Images(made.reading), **options)
        model = onnx.load(after)
    reading = replace(made.reading, opset=next(one.version for one in model.opset_import if one.domain == ""))
    return Made(model, reading, None)


class _Images:
    """Four batches for onnxruntime's calibration."""

    def __init__(self, reading: Reading) -> None:
        self.batches = [reading.network_input(pictures(8, reading.size, seed=300 + number)) for number in range(4)]

    def get_next(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]] | None:
        return {"input": self.batches.pop()} if self.batches else None


class _Several(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(self.network, TinyResNet)
        found = self.network.features(x)
        embedding = found.mean((2, 3))
        return found, embedding, self.network.fc(embedding)


class _Normalising(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(FREE.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(FREE.std).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x / 255 - self.mean) / self.std)
        return logits


class _Index(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        index: Tensor = self.network(x).argmax(1)
        return index


class _FakeQuantized(nn.Module):
    """A convolution or linear layer behind fake quantization of its input and, per channel, of its weight; the scales are of training."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        rows = len(layer.weight)
        self.layer = layer
        self.scale: Tensor
        self.steps: Tensor
        self.zero: Tensor
        self.zeros: Tensor
        self.register_buffer("scale", torch.tensor(0.0))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("steps", torch.zeros(rows))
        self.register_buffer("zeros", torch.zeros(rows, dtype=torch.int32))

    @classmethod
    def all_over(cls, network: nn.Module) -> nn.Module:
        for name, child in list(network.named_children()):
            if isinstance(child, nn.Conv2d | nn.Linear):
                setattr(network, name, cls(child))
            else:
                cls.all_over(child)
        return network

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if self.training:
            self.scale.copy_(torch.maximum(self.scale, x.detach().abs().max() / 127))
            self.steps.copy_(weight.detach().flatten(1).abs().amax(1) / 127)
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -128, 127)
        weight = torch.fake_quantize_per_channel_affine(weight, self.steps, self.zeros, 0, -128, 127)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return functional.conv2d(x, weight, self.layer.bias, self.layer.stride, self.layer.padding)
