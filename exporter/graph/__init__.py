"""ONNX graphs in general: made from a program, simplified, named, measured, probed."""
