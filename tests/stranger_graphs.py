"""Files of tiny residual networks written node by node, as tf2onnx, keras2onnx and Caffe's converters write them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stranger_networks import CLASSES, Block, TinyResNet, TinyResNetV2, settled
from stranger_readings import Reading
from torch import Tensor, nn

SIZE = (64, 64)
ONES = (1.0, 1.0, 1.0)
TENSORFLOW = Reading(
    SIZE, "Identity:0", CLASSES, 9, "nhwc", "rgb", 255, (127.5, 127.5, 127.5), (127.5,) * 3, softmax=True
)
KERAS_V2 = Reading(
    SIZE, "predictions", CLASSES, 13, "nhwc", "rgb", 255, (127.5, 127.5, 127.5), (127.5,) * 3, softmax=True
)
CAFFE = Reading(SIZE, "prob", CLASSES, 7, "nchw", "bgr", 255, (123.68, 116.779, 103.939), ONES, 1, softmax=True)


def tensorflow_nhwc() -> Made:
    """A ResNet of TensorFlow as tf2onnx writes it for opset 9, IR 4.

    To be met: the input (batch, height, width, 3) and a Transpose first; a Pad apart before the stem's convolution; a bias as an Add, then a
    BatchNormalization (FusedBatchNormV3); auto_pad SAME_UPPER with a stride of 2; zeros padded around the pool (behind a ReLU, so harmless); a
    Transpose back and ReduceMean over height and width; MatMul and Add for the classifier; Softmax; names with slashes and colons.
    """
    network = settled(TinyResNet("tensorflow"), TENSORFLOW)
    assert isinstance(network, TinyResNet)
    write = _Writer("StatefulPartitionedCall/model/")
    x = write.node("Transpose", "StatefulPartitionedCall/model/conv1_conv/Conv2D__6", ["image"], perm=[0, 3, 1, 2])
    x = write.node("Pad", "conv1_pad/Pad", [x], pads=[0, 0, 3, 3, 0, 0, 3, 3])
    x = write.biased_conv("conv1", x, network.conv1, auto_pad="VALID")
    x = write.norm("conv1_bn", x, network.bn1)
    x = write.node("Relu", "conv1_relu/Relu", [x])
    x = write.node("Pad", "pool1_pad/Pad", [x], pads=[0, 0, 1, 1, 0, 0, 1, 1])
    x = write.node("MaxPool", "pool1_pool/MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    for number, block in enumerate(network.blocks, 2):
        assert isinstance(block, Block)
        x = _tensorflow_block(write, f"conv{number}_block1", x, block)
    x = write.node("Transpose", "Transpose__194", [x], perm=[0, 2, 3, 1])
    x = write.node("ReduceMean", "avg_pool/Mean", [x], axes=[1, 2], keepdims=0)
    weight = write.tensor("predictions/MatMul/ReadVariableOp", _array(network.fc.weight).T)
    x = write.node("MatMul", "predictions/MatMul", [x, weight])
    bias = write.tensor("predictions/BiasAdd/ReadVariableOp", _array(network.fc.bias))
    x = write.node("Add", "predictions/BiasAdd", [x, bias])
    write.node("Softmax", "predictions/Softmax", [x], "Identity:0", axis=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["unk__67", *SIZE, 3])
    return Made(write.model(image, TENSORFLOW, "unk__68", producer="tf2onnx", ir=4), TENSORFLOW, network)


def _tensorflow_block(write: _Writer, name: str, x: str, block: Block) -> str:
    padding = {"auto_pad": "SAME_UPPER"} if block.stride == 2 else {"pads": [1, 1, 1, 1]}
    inner = write.biased_conv(f"{name}_1", x, block.conv1, **padding)
    inner = write.node("Relu", f"{name}_1_relu/Relu", [write.norm(f"{name}_1_bn", inner, block.bn1)])
    inner = write.biased_conv(f"{name}_2", inner, block.conv2, pads=[1, 1, 1, 1])
    inner = write.norm(f"{name}_2_bn", inner, block.bn2)
    if block.project:
        x = write.norm(f"{name}_0_bn", write.biased_conv(f"{name}_0", x, block.conv0), block.bn0)
    x = write.node("Add", f"{name}_add/add", [x, inner])
    return write.node("Relu", f"{name}_out/Relu", [x])


def keras_v2() -> Made:
    """A small ResNetV2 of Keras as `Model.export(format="onnx")` writes it for opset 13, IR 7.

    To be met: the leading Transpose; a Pad of zeros, with its pads as an input, before a pool and behind a bare convolution: it must stay, since
    the pool's own padding is minus infinity; normalisations before blocks and at the end as Mul and Add of (1, C, 1, 1), which no
    convolution can take; Squeeze with its axes as an input; MatMul; a Softmax without axis.
    """
    network = settled(TinyResNetV2(), KERAS_V2)
    assert isinstance(network, TinyResNetV2)
    write = _Writer("resnet50v2_1/")
    x = write.node("Transpose", "resnet50v2_1/conv1_conv_1/convolution__6", ["keras_tensor"], perm=[0, 3, 1, 2])
    x = write.conv("conv1_conv_1/convolution", x, network.conv1, pads=[3, 3, 3, 3])
    pads = write.tensor("pad_const__74", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = write.node("Pad", "pool1_pad_1/Pad", [x, pads])
    x = write.node("MaxPool", "pool1_pool_1/MaxPool2d", [x], kernel_shape=[3, 3], strides=[2, 2])
    for number, parts in enumerate(
        zip(network.norms, network.inner, network.inner_norms, network.outer, strict=True), 1
    ):
        norm, inner, inner_norm, outer = parts
        name = f"conv2_block{number}"
        before = write.node("Relu", f"{name}_preact_relu_1/Relu", [write.affine(f"{name}_preact_bn_1", x, norm)])
        deep = write.conv(f"{name}_1_conv_1/convolution", before, inner, pads=[1, 1, 1, 1])
        deep = write.norm(f"{name}_1_bn_1", deep, inner_norm)
        deep = write.node("Relu", f"{name}_1_relu_1/Relu", [deep])
        deep = write.conv(f"{name}_2_conv_1/convolution", deep, outer)
        x = write.node("Add", f"{name}_out_1/Add", [x, deep])
    x = write.node("Relu", "post_relu_1/Relu", [write.affine("post_bn_1", x, network.post_bn)])
    x = write.node("GlobalAveragePool", "avg_pool_1/Mean", [x])
    axes = write.tensor("const_axes__351", np.array([2, 3], np.int64))
    x = write.node("Squeeze", "avg_pool_1/Mean_Squeeze__352", [x, axes])
    weight = write.tensor("predictions_1/Cast/ReadVariableOp", _array(network.fc.weight).T)
    x = write.node("MatMul", "predictions_1/MatMul", [x, weight])
    bias = write.tensor("predictions_1/Add/ReadVariableOp", _array(network.fc.bias))
    x = write.node("Add", "predictions_1/Add", [x, bias])
    write.node("Softmax", "predictions_1/Softmax", [x], "predictions")
    image = helper.make_tensor_value_info("keras_tensor", TensorProto.FLOAT, ["unk__353", *SIZE, 3])
    return Made(write.model(image, KERAS_V2, "unk__354", producer="tf2onnx", ir=7), KERAS_V2, network)


def caffe_bgr(opset: int = 7) -> Made:
    """A Caffe ResNet as its converters write it for opset 7 (or 8, or 10), IR 3.

    To be met: the input `data` fixed at one image of B, G, R and 0..255; each initializer also an input; BatchNorm and Scale as two steps
    (BatchNormalization of scale 1 and bias 0, then Mul and Add of (C, 1, 1)); a pool that counts started windows, as pads at
    the end, or with opset 10 as ceil_mode; AveragePool of the map's size; a Reshape to [1, 32]; Softmax `prob`.
    """
    reading = replace(CAFFE, opset=opset)
    network = settled(TinyResNet("caffe"), reading)
    assert isinstance(network, TinyResNet)
    write = _Writer("", suffix="")
    x = write.conv("conv1", "data", network.conv1, pads=[3, 3, 3, 3])
    x = write.node("Relu", "conv1_relu", [write.norm_and_scale("conv1", x, network.bn1)])
    ceil: dict[str, Any] = {"ceil_mode": 1} if opset >= 10 else {"pads": [0, 0, 1, 1]}
    x = write.node("MaxPool", "pool1", [x], kernel_shape=[3, 3], strides=[2, 2], **ceil)
    for letter, block in zip("ab", network.blocks, strict=True):
        assert isinstance(block, Block)
        x = _caffe_block(write, f"2{letter}", x, block)
    x = write.node("AveragePool", "pool5", [x], kernel_shape=[SIZE[0] // 8] * 2)
    x = write.node("Reshape", "fc_flatten", [x, write.tensor("fc_shape", np.array([1, 32], np.int64))])
    weight, bias = write.tensor("fc_w", _array(network.fc.weight)), write.tensor("fc_b", _array(network.fc.bias))
    x = write.node("Gemm", "fc", [x, weight, bias], transB=1)
    write.node("Softmax", "prob", [x], "prob", axis=1)
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, *SIZE])
    model = write.model(image, reading, 1, producer="caffe2onnx", ir=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
    )
    return Made(model, reading, network)


def _caffe_block(write: _Writer, name: str, x: str, block: Block) -> str:
    pads = [1, 1, 1, 1]
    inner = write.conv(f"res{name}_branch2a", x, block.conv1, pads=pads)
    inner = write.node("Relu", f"res{name}_branch2a_relu", [write.norm_and_scale(f"{name}_branch2a", inner, block.bn1)])
    inner = write.conv(f"res{name}_branch2b", inner, block.conv2, pads=pads)
    inner = write.norm_and_scale(f"{name}_branch2b", inner, block.bn2)
    if block.project:
        x = write.conv(f"res{name}_branch1", x, block.conv0)
        x = write.norm_and_scale(f"{name}_branch1", x, block.bn0)
    return write.node("Relu", f"res{name}_relu", [write.node("Add", f"res{name}", [x, inner])])


def _array(value: Tensor | None) -> NDArray[np.float32]:
    assert value is not None
    return value.detach().numpy().copy()


class _Writer:
    """Nodes and initializers in the making; `prefix` stands before each name, and `suffix` behind an output's."""

    def __init__(self, prefix: str, suffix: str = ":0") -> None:
        self.prefix, self.suffix = prefix, suffix
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def tensor(self, name: str, value: NDArray[Any]) -> str:
        full = f"{self.prefix}{name}{self.suffix}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), full))
        return full

    def node(self, operator: str, name: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        full = name if name.startswith(self.prefix) else self.prefix + name
        output = output or full + self.suffix
        self.nodes.append(helper.make_node(operator, inputs, [output], name=full, **attributes))
        return output

    def conv(self, name: str, x: str, conv: nn.Module, **padding: Any) -> str:
        assert isinstance(conv, nn.Conv2d)
        inputs = [x, self.tensor(f"{name}_w", _array(conv.weight))]
        if conv.bias is not None:
            inputs.append(self.tensor(f"{name}_b", _array(conv.bias)))
        shape: dict[str, Any] = {
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
            "dilations": [1, 1],
            "group": 1,
        }
        return self.node("Conv", name, inputs, **shape, **padding)

    def biased_conv(self, name: str, x: str, conv: nn.Conv2d, **padding: Any) -> str:
        """A Conv without, and an Add with the bias, (1, C, 1, 1)."""
        weight = self.tensor(f"{name}_conv/Conv2D/ReadVariableOp", _array(conv.weight))
        shape: dict[str, Any] = {
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
            "dilations": [1, 1],
            "group": 1,
        }
        x = self.node("Conv", f"{name}_conv/Conv2D", [x, weight], **shape, **padding)
        bias = self.tensor(f"const_fold_opt__{len(self.tensors) + 100}", _array(conv.bias).reshape(1, -1, 1, 1))
        return self.node("Add", f"{name}_conv/BiasAdd", [x, bias])

    def norm(self, name: str, x: str, norm: nn.Module) -> str:
        assert isinstance(norm, nn.BatchNorm2d)
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        names = (
            "ReadVariableOp",
            "ReadVariableOp_1",
            "FusedBatchNormV3/ReadVariableOp",
            "FusedBatchNormV3/ReadVariableOp_1",
        )
        inputs = [self.tensor(f"{name}/{one}", _array(value)) for one, value in zip(names, values, strict=True)]
        return self.node("BatchNormalization", f"{name}/FusedBatchNormV3", [x, *inputs], epsilon=norm.eps)

    def affine(self, name: str, x: str, norm: nn.Module) -> str:
        """A normalisation as Mul and Add."""
        assert isinstance(norm, nn.BatchNorm2d)
        scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + np.float32(norm.eps))
        offset = _array(norm.bias) - _array(norm.running_mean) * scale
        x = self.node("Mul", f"{name}/batchnorm/mul_1", [x, self.tensor(f"{name}/mul", scale.reshape(1, -1, 1, 1))])
        return self.node("Add", f"{name}/batchnorm/add_1", [x, self.tensor(f"{name}/sub", offset.reshape(1, -1, 1, 1))])

    def norm_and_scale(self, name: str, x: str, norm: nn.Module) -> str:
        """Caffe's BatchNorm and Scale layers."""
        assert isinstance(norm, nn.BatchNorm2d)
        channels = np.ones(norm.num_features, np.float32)
        values = (channels, 0 * channels, _array(norm.running_mean), _array(norm.running_var))
        inputs = [self.tensor(f"bn{name}_{one}", value) for one, value in zip("gbmv", values, strict=True)]
        x = self.node("BatchNormalization", f"bn{name}", [x, *inputs], epsilon=norm.eps)
        scale = self.tensor(f"scale{name}_w", _array(norm.weight).reshape(-1, 1, 1))
        offset = self.tensor(f"scale{name}_b", _array(norm.bias).reshape(-1, 1, 1))
        return self.node("Add", f"scale{name}", [self.node("Mul", f"scale{name}_mul", [x, scale]), offset])

    def model(
        self, image: onnx.ValueInfoProto, reading: Reading, batch: str | int, *, producer: str, ir: int
    ) -> onnx.ModelProto:
        answer = helper.make_tensor_value_info(reading.output, TensorProto.FLOAT, [batch, reading.classes])
        graph = helper.make_graph(self.nodes, producer, [image], [answer], self.tensors)
        opsets = [helper.make_opsetid("", reading.opset)]
        if producer == "tf2onnx":
            opsets.append(helper.make_opsetid("ai.onnx.ml", 2))
        return helper.make_model(graph, producer_name=producer, opset_imports=opsets, ir_version=ir)


@dataclass(frozen=True)
class Made:
    """A made file, its right reading, and the network in PyTorch that it must equal: (batch, 3, height, width) to logits; None where there is none."""

    model: onnx.ModelProto
    reading: Reading
    network: nn.Module | None = None
