"""Build, simplify, name, measure and probe ONNX graphs, whatever their precision."""
