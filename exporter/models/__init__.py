"""Turn a model's name or checkpoint into a PyTorch module with its weights."""
