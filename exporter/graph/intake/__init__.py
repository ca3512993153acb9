"""Take a stranger's ONNX file in: read it, find out how it is fed, and bring it to the form of our own graphs."""
