"""Builders of engines: plug-ins, one file for each library. They import neither torch nor onnx, so that a device needs neither.

A plug-in has `VERSION`, the library's; `here(options)`, the targets it would build for, with the device where there is one; and
`build(job, on_step)`, the plan. What they share is in `_network.py` (the network and its configuration) and `_layers.py` (the proof of precision).
"""
