"""Watch a model run: the images to measure with, and (from INT8 on) what they do to every tensor."""
