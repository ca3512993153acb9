"""Record the names of TensorRT's Python API, by version, into tests/tensorrt_names: one text file a version.

    python scripts/record_tensorrt_names.py

The bindings wheels are small and hold the whole Python API, but load only beside TensorRT's own libraries (gigabytes, for a GPU). Their names can be
read without: the bindings call nothing while they are imported, so each is imported in a process of its own, beside empty libraries that carry the
right file names. What is written is therefore what `dir()` says, class by class, not what a document says. Needs x86-64 Linux, pip and a C compiler.

Left out: underscored names, the members of the classes below ILayer (a network comes from ONNX here) and those of the plug-in interfaces.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click

WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu12-bindings",
    "rtx-1.4.0.76": "tensorrt-rtx-cu13-bindings",
    "rtx-1.7.1.116": "tensorrt-rtx-cu13-bindings",
}
# What the bindings want to find at import, though they do not call it then.
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARY = re.compile(rb"lib(?:nv|tensorrt)\w+\.so\.\d+(?=\0)")


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tests/tensorrt_names"),
    show_default=True,
)
@click.option("--print", "module", metavar="MODULE", help="Only print the names of this importable module.")
def main(output: Path, module: str | None) -> None:
    if module is not None:
        loaded = importlib.import_module(module)
        click.echo("\n".join(sorted({*names_from_owner(loaded)})))
        return
    output.mkdir(parents=True, exist_ok=True)
    for label, package in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            text = record_from_wheel(download(package, label.removeprefix("rtx-"), Path(folder)))
        (output / f"{label}.txt").write_text(text)
        click.echo(f"{output / label}.txt: {sum(not line.startswith('#') for line in text.splitlines())} names")


def download(package: str, version: str, folder: Path) -> Path:
    """The wheel of one version, for the Python that runs this."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    subprocess.run([*command, f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def record_from_wheel(wheel: Path) -> str:
    """The text of one record: two lines of comment, then the sorted names."""
    unpacked, libraries = wheel.parent / "unpacked", wheel.parent / "libraries"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    (binary,) = unpacked.glob("*/*.so")
    write_empty_libraries(binary, libraries)
    done = subprocess.run(
        [sys.executable, __file__, "--print", binary.parent.name],
        env={**os.environ, "PYTHONPATH": str(unpacked), "LD_LIBRARY_PATH": str(libraries)},
        check=True,
        capture_output=True,
        text=True,
    )
    return f"# {wheel.name}\n# sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}\n{done.stdout}"


def write_empty_libraries(binary: Path, folder: Path) -> None:
    """Into `folder`, a library for each of TensorRT's that `binary` names, with functions that do nothing."""
    folder.mkdir()
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS)
    for name in {found.decode() for found in LIBRARY.findall(binary.read_bytes())}:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)], input=source, text=True, check=True
        )


def names_from_owner(owner: Any, prefix: str = "") -> Iterator[str]:
    """`Class`, `Class.member` and `Class.Inner.member` of a module or class, inherited members included."""
    for name in dir(owner):
        value = getattr(owner, name)
        if (
            name.startswith("_")
            or isinstance(value, ModuleType)
            or (hasattr(owner, "__members__") and name in {"name", "value"})
        ):
            continue
        yield prefix + name
        if isinstance(value, type) and value.__module__.startswith("tensorrt") and not _is_left_out(value):
            yield from names_from_owner(value, f"{prefix}{name}.")


def _is_left_out(kind: type) -> bool:
    return kind.__name__.startswith("IPlugin") or any(base.__name__ == "ILayer" for base in kind.__mro__[1:])


if __name__ == "__main__":
    main()
