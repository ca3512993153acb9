"""A Triton server without a GPU for the slow tests, in build/triton: `make triton-server`.

NVIDIA's package nvidia-pytriton (Apache-2.0) carries the server's program and its Python backend, for glibc 2.35 or newer. It is unpacked, not installed: it
wants numpy 1. Beside it come an environment with numpy 1, which that server was built for, and scripts/triton/model.py as the backends
`onnxruntime` and `openvino`, which the package does not have.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "triton"
SERVER = "nvidia-pytriton==0.7.0"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STANDS_IN_FOR = ("onnxruntime", "openvino")


def requirements() -> list[str]:
    """Of the server's environment: this one's versions of what runs models, so that answers can be compared to the bit."""
    same = [f"{name}=={version(name)}" for name in ("onnxruntime", "openvino", "pillow")]
    return ["numpy==1.26.4", *same]


def pip(python: str | Path, *words: str) -> None:
    subprocess.run([str(python), "-m", "pip", *words, "--quiet", "--disable-pip-version-check"], check=True)


def unpack_server(folder: Path) -> None:
    """The wheel's files, with the Python backend's stub for this version of Python in its place."""
    pip(sys.executable, "download", "--no-deps", "--dest", str(folder), SERVER)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "server")
    wheel.unlink()
    triton = folder / "server" / "pytriton" / "tritonserver"
    stub = triton / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(triton / "python_backend_stubs" / PYTHON / stub.name, stub)
    for program in (stub, triton / "bin" / "tritonserver"):
        program.chmod(0o755)
    for name in STANDS_IN_FOR:
        (triton / "backends" / name).mkdir()
        shutil.copy(ROOT / "scripts" / "triton" / "model.py", triton / "backends" / name)


def main() -> None:
    """Build it anew, beside its place, and move it there."""
    if sys.version_info >= (3, 13):
        sys.exit(f"expected Python 3.10 to 3.12, for which numpy 1 has packages, got {PYTHON}; run this with another")
    making = FOLDER.with_name("triton.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    unpack_server(making)
    shutil.rmtree(FOLDER, ignore_errors=True)
    making.rename(FOLDER)
    venv.create(FOLDER / "python", with_pip=True)  # it keeps its path, and so is made in its place
    pip(FOLDER / "python" / "bin" / "python", "install", *requirements())
    (FOLDER / "made.txt").write_text("\n".join([SERVER, *requirements()]) + "\n")
    print(f"wrote {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
