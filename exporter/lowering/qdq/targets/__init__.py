"""Plug-ins: where a target wants Q/DQ pairs. The file's name is the name of `--target`."""
