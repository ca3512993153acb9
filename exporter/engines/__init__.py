"""Engines from a bundle. Needs neither torch nor onnx."""
