"""Follow a bundle block by block: where an error comes from, and which blocks to return to FP32."""
