"""NNCF's post-training quantization of float.onnx, as for OpenVINO; run by scripts/make_strangers.py with the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import onnx

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    images = np.load(folder / "calibration.npz")["input"]
    data = nncf.Dataset([image[None] for image in images], lambda image: {"input": image})
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        quantized = nncf.quantize(onnx.load(folder / "float.onnx"), data, subset_size=len(images), preset=preset)
        onnx.save(quantized, folder / f"nncf_{preset.value}.onnx")
