"""A model by its name or checkpoint, as a module with weights."""
