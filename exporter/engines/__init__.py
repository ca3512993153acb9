"""Build engines from a bundle; needs neither torch nor onnx."""
