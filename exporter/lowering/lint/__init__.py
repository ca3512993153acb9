"""Lint ONNX files for the TensorRT that will read them: rules with ids, and findings that name them."""
