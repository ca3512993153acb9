"""Quantization-aware training of TensorFlow (tfmot) by tf2onnx; run by scripts/make_strangers.py with the output folder, and Keras 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf2onnx
from stranger_readings import pictures

layers = tf.keras.layers
SIDE, CLASSES = 64, 10


def residual() -> Any:
    """Stem, one block and 10 logits, of 64 pixels."""
    image = tf.keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(16, 7, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    y = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(y))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    return tf.keras.Model(image, layers.Dense(CLASSES)(x))


def main(folder: Path) -> None:
    """Train a little with fake quantization, and write tfmot_trained.onnx."""
    tf.keras.utils.set_random_seed(0)
    model = tfmot.quantization.keras.quantize_model(residual())
    model.compile(tf.keras.optimizers.Adam(3e-3), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = pictures(64, (SIDE, SIDE), seed=1)
    inputs = (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    model.fit(inputs, np.arange(64) % CLASSES, epochs=40, batch_size=16, verbose=0)
    signature = [tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="image")]
    tf2onnx.convert.from_keras(model, signature, opset=13, output_path=str(folder / "tfmot_trained.onnx"))
    np.savez(folder / "tfmot_trained.npz", images=images[:8], answers=model(inputs[:8], training=False).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
