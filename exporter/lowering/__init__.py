"""Lower an FP32 graph to a precision; `lower.py` is the entry point."""
