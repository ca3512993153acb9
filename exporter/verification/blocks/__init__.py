"""Follow a bundle block by block: where an error arises, and which blocks to return to FP32."""
