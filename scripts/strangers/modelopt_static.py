"""NVIDIA ModelOpt's post-training quantization of float.onnx; run by scripts/make_strangers.py with the folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from modelopt.onnx import quantization

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for precision in ("fp32", "fp16"):
        with tempfile.TemporaryDirectory() as scratch:
            source = shutil.copy(folder / "float.onnx", scratch)  # ModelOpt writes over what it is given
            quantization.quantize(
                source,
                quantize_mode="int8",
                calibration_data=dict(np.load(folder / "calibration.npz")),
                calibration_eps=["cpu"],
                high_precision_dtype=precision,
                output_path=str(folder / f"modelopt_{precision}.onnx"),
            )
