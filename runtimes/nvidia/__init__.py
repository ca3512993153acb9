"""What TensorRT and TensorRT-RTX share: memory, streams, graphs, engine files and who is trusted with them."""
