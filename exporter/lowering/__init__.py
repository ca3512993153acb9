"""Lower an FP32 graph to a precision."""
