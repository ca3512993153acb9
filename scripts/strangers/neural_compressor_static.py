"""Neural Compressor's post-training quantization of float.onnx, as Q/DQ and as operators; run by scripts/make_strangers.py with the folder.

Neural Compressor left ONNX with version 3; its ONNX part is the package onnx-neural-compressor, of 2024.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize


class Images(data_reader.CalibrationDataReader):  # type: ignore[misc]  # the package is not there when this is checked
    """The calibration images, eight at a time."""

    def __init__(self, images: Any) -> None:
        self.images = images
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)

    def rewind(self) -> None:
        self.batches = ({"input": self.images[start : start + 8]} for start in range(0, len(self.images), 8))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    images = np.load(folder / "calibration.npz")["input"]
    for name, kind in {
        "neural_compressor_qdq": QuantFormat.QDQ,
        "neural_compressor_ops": QuantFormat.QOperator,
    }.items():
        settings = config.StaticQuantConfig(calibration_data_reader=Images(images), quant_format=kind)
        quantize(str(folder / "float.onnx"), str(folder / f"{name}.onnx"), settings)
