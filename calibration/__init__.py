"""Calibration: the images to measure with, and the histograms of every tensor's values that INT8 ranges come from."""

import runtimes  # noqa: F401  (before onnxruntime: it sets ORT_DISABLE_TELEMETRY)

FEWEST_IMAGES = 64
"""How many images ranges are measured on at least, unless fewer are allowed."""
