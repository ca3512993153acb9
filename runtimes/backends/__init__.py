"""Plug-ins: one file per backend, each with a `RUNTIME` class. The file's name is the backend's name."""
