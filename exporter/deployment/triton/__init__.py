"""A model repository for NVIDIA's Triton Inference Server, written from bundles."""
