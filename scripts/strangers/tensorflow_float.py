"""TensorFlow's and Keras' float files, by tf2onnx and by Keras' own export; run by scripts/make_strangers.py with the output folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from stranger_readings import pictures

layers = keras.layers
SIDE, CLASSES = 64, 10


def batch(side: int, count: int, seed: int) -> tuple[Any, Any]:
    """Images, uint8, and the same as Keras' preprocess_input of mode "tf" makes them: float32 of -1..1, (count, side, side, 3)."""
    images = pictures(count, (side, side), seed=seed)
    return images, (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def settle(model: Any, side: int) -> None:
    """Somewhat random batch norms, with the statistics of 32 images."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(random.normal(0, 0.3, layer.beta.shape))
            layer.momentum = 0.0
    model(batch(side, 32, 1)[1], training=True)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.99


def block(x: Any, width: int, stride: int, name: str) -> Any:
    """A residual block in Keras' names, with SAME padding."""

    def normed(x: Any, kernel: int, stride: int, part: str) -> Any:
        x = layers.Conv2D(width, kernel, strides=stride, padding="same", name=f"{name}_{part}_conv")(x)
        return layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_{part}_bn")(x)

    y = layers.ReLU(name=f"{name}_1_relu")(normed(x, 3, stride, "1"))
    y = normed(y, 3, 1, "2")
    if stride != 1:
        x = normed(x, 1, stride, "0")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))


def residual() -> Any:
    """Stem, two blocks and a softmax over 10 classes, of 64 pixels."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = layers.Conv2D(16, 7, strides=2, name="conv1_conv")(x)
    x = layers.ReLU(name="conv1_relu")(layers.BatchNormalization(epsilon=1.001e-5, name="conv1_bn")(x))
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(layers.ZeroPadding2D(1, name="pool1_pad")(x))
    x = block(block(x, 16, 1, "conv2_block1"), 32, 2, "conv3_block1")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    model = keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="predictions")(x))
    settle(model, SIDE)
    return model


def keep(folder: Path, name: str, model: Any, side: int) -> None:
    """What the model itself answers eight images, beside its file."""
    images, inputs = batch(side, 8, 2)
    np.savez(folder / f"{name}.npz", images=images, answers=np.asarray(model(inputs, training=False)))


def main(folder: Path) -> None:
    """Write all of them."""
    keras.utils.set_random_seed(0)
    model = residual()
    signature = [tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="image")]
    tf2onnx.convert.from_keras(model, signature, opset=9, output_path=str(folder / "tf2onnx_resnet_9.onnx"))
    tf2onnx.convert.from_keras(model, signature, opset=18, output_path=str(folder / "tf2onnx_resnet_18.onnx"))
    backbone = keras.Model(model.input, model.get_layer("conv3_block1_out").output)
    tf2onnx.convert.from_keras(backbone, signature, opset=13, output_path=str(folder / "tf2onnx_backbone.onnx"))
    for name, network in {
        "tf2onnx_resnet_9": model,
        "tf2onnx_resnet_18": model,
        "tf2onnx_backbone": backbone,
    }.items():
        keep(folder, name, network, SIDE)
    large = keras.applications.ResNet50V2(weights=None, input_shape=(96, 96, 3), classes=CLASSES)
    settle(large, 96)
    large.export(str(folder / "keras_resnet50v2.onnx"), format="onnx", verbose=False)
    keep(folder, "keras_resnet50v2", large, 96)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
