"""Files of other tools for the slow tests, each made in that tool's own environment: `make strangers`, or with names of environments.

Environments of pinned versions are built in build/strangers-venv/NAME, once; some see the packages of the environment this runs in, for PyTorch
and ONNX need not be there twice. Files go to build/strangers: NAME.onnx, and NAME.npz with `images`, uint8 (count, height, width, 3) in R, G, B,
and `answers`, float32 (count, classes), of the framework itself, where it was one that runs networks. tests/stranger_elsewhere.py says
how each is rightly read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "build" / "strangers"
VENVS = ROOT / "build" / "strangers-venv"
CALIBRATION = 64


def write_source(folder: Path) -> None:
    """float.onnx, a small residual network with a free batch, and calibration.npz, `input` float32 (64, 3, 64, 64): what quantization tools are given."""
    from stranger_makers import FREE, legacy
    from stranger_readings import pictures

    made = legacy(13, None)
    made.model.ir_version = 8  # the oldest of the tools reads no newer one
    onnx.save(made.model, folder / "float.onnx")
    images = pictures(CALIBRATION, FREE.size, seed=7)
    np.savez(folder / "calibration.npz", input=FREE.network_input(images))


def prepared(name: str) -> Path:
    """The Python of an environment, which is built unless its requirements have been installed."""
    environment = ENVIRONMENTS[name]
    folder = VENVS / name
    python = folder / "bin" / "python"
    installed = folder / "installed.txt"
    wanted = "\n".join(environment.requirements)
    if installed.exists() and installed.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    if environment.shares:
        packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    click.echo(f"{name}: installing {', '.join(environment.requirements)}")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *environment.requirements], check=True)
    installed.write_text(wanted)
    return python


def make(name: str) -> None:
    """Run the scripts of one environment."""
    python = prepared(name)
    for script, variables in ENVIRONMENTS[name].scripts.items():
        click.echo(f"{name}: {script}")
        paths = {"PYTHONPATH": str(ROOT / "tests"), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [python, str(ROOT / "scripts" / "strangers" / script), str(FILES)],
            env={**os.environ, **paths, **variables},
            check=True,
        )


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Make the files of these environments, or of all."""
    if unknown := set(names) - set(ENVIRONMENTS):
        sys.exit(f"expected names among {', '.join(ENVIRONMENTS)}, got {', '.join(sorted(unknown))}")
    FILES.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "tests"))
    write_source(FILES)
    failed = []
    for name in names or ENVIRONMENTS:
        try:
            make(name)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name}: {error}")
    if failed:
        sys.exit("\n".join(failed))


@dataclass(frozen=True)
class Environment:
    """Pinned packages, and the scripts run with them, each with its environment variables; `shares`: sees this environment's packages too."""

    requirements: tuple[str, ...]
    scripts: dict[str, dict[str, str]] = field(default_factory=dict)
    shares: bool = False


ENVIRONMENTS = {
    "tensorflow": Environment(
        (
            "tensorflow==2.21.0",
            "keras==3.15.1",
            "tf2onnx==1.17.0",
            "onnx==1.23.2",
            "tf-keras==2.21.0",
            "tensorflow-model-optimization==0.8.1",
        ),
        {"tensorflow_float.py": {}, "tensorflow_trained.py": {"TF_USE_LEGACY_KERAS": "1"}},
    ),
    "modelopt": Environment(("nvidia-modelopt[onnx]==0.47.0",), {"modelopt_static.py": {}}, shares=True),
    "nncf": Environment(("nncf==3.4.0",), {"nncf_static.py": {}}, shares=True),
    "torchao": Environment(("torchao==0.18.0",), {"torch_pt2e.py": {}}, shares=True),
    "neural_compressor": Environment(
        (
            "onnx-neural-compressor==1.0",
            "onnx==1.16.2",
            "onnxruntime==1.18.1",
            "numpy==1.26.4",
            "scipy==1.15.3",
            "prettytable==3.18.0",
            "py-cpuinfo==9.0.0",
            "psutil==7.2.2",
            "pydantic==2.12.5",
        ),
        {"neural_compressor_static.py": {}},
    ),
}


if __name__ == "__main__":
    main()
