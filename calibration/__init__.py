"""Watch a model run: the images to measure with, and (from INT8 on) what they do to every tensor."""

import runtimes  # noqa: F401  (before onnxruntime: it says what that may write outside of our folders)
