"""The networks that `scripts/accuracy.py` judges INT8 on, and the images that everyone is calibrated and judged on."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.classes import ModelClasses, match_source
from calibration.data import ImageSource, built_in, choose_evenly, inputs_from_source, open_source
from runtimes.bundle import Bundle
from runtimes.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib

SCRIPTS = Path(__file__).resolve().parent
BUILT_IN = "built-in"
SEED = 0
FIELDS = ("name", "make", "export", "bundle", "calibration", "test", "images", "labelled")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        export: arguments of resnet-export for its FP32 bundle, `{made}` standing for the folder of `make`.
        make: a script of scripts/ with its arguments, which writes what `export` needs into --output; empty if nothing.
        bundle: an FP32 bundle that is there already; takes the place of the two above.
        calibration, test: as --data of resnet-export; of an IDX folder the training and the test images.
        images: how many test images; None for all.
        labelled: whether the test images' classes are the model's.
    """

    name: str
    export: str = ""
    make: str = ""
    bundle: str = ""
    calibration: str = BUILT_IN
    test: str = BUILT_IN
    images: int | None = None
    labelled: bool = True


@dataclass(frozen=True)
class Images:
    """What everyone is calibrated on and judged on.

    Attributes:
        source: the calibration images as files.
        calibration: the same as inputs, float32 (images, channels, height, width).
        test: likewise.
        labels: int64 (test images,); None where they have none.
    """

    source: ImageSource
    calibration: Floats
    test: Floats
    labels: NDArray[np.int64] | None


def networks_from_file(path: Path) -> list[Network]:
    """Read the list of networks, a [[network]] table each.

    Raises:
        BadInput: it is no such list; says what is wrong with it.
    """
    if sys.version_info < (3, 11):
        raise BadInput(f"--networks: reading {path} takes Python 3.11 or newer")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("network", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"--networks: cannot read {path}: {error}") from error
    for table in tables:
        unknown = set(table) - set(FIELDS)
        if unknown or "name" not in table or bool(table.get("export")) == bool(table.get("bundle")):
            what = f"the field {unknown.pop()}" if unknown else f"{sorted(table)}"
            raise BadInput(
                f"--networks: expected [[network]] with name, export or bundle, and of {', '.join(FIELDS)}, got {what} in {path}"
            )
    if not tables:
        raise BadInput(f"--networks: expected [[network]] tables, got none in {path}")
    return [Network(**table) for table in tables]


def bundle_of(network: Network, work: Path) -> Bundle:
    """The network's FP32 bundle, made and exported into `work` unless it is there from an earlier run.

    Raises:
        BadInput: making or exporting it failed, or it is of another precision; with the command's last words.
    """
    folder = Path(network.bundle) if network.bundle else work / slug(network.name) / "fp32"
    if not folder.is_dir():
        made = work / slug(network.name) / "made"
        if network.make and not (made / "done").exists():
            _run([sys.executable, *_script(network.make), "--output", str(made)])
            (made / "done").touch()
        command = network.export.replace("{made}", str(made))
        _run([str(Path(sys.executable).with_name("resnet-export")), *shlex.split(command), "--output", str(folder)])
    bundle = Bundle.open(folder)
    if bundle.manifest.precision != "fp32":
        raise BadInput(f"expected an fp32 bundle, got {bundle.manifest.precision} in {folder}; export it with --fp32")
    return bundle


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def _script(command: str) -> list[str]:
    name, *arguments = shlex.split(command)
    return [str(SCRIPTS / name), *arguments]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInput(f"{shlex.join(command)} failed: {last}")


def images_of(network: Network, bundle: Bundle, calibration_images: int, most: int | None) -> Images:
    """The pictures, through the model's own preprocessing.

    Raises:
        BadInput: a source cannot be read, or it should have the model's classes and has others.
    """
    preprocess = bundle.manifest.preprocess
    calibration = open_source(network.calibration)
    chosen = calibration.subset(choose_evenly(calibration, calibration_images, SEED))
    test = built_in("test") if network.test == BUILT_IN else open_source(network.test, split="test")
    if network.labelled:
        test, _ = match_source(test, ModelClasses(bundle.manifest.model.classes, bundle.labels))
    count = min(one for one in (network.images, most, test.count) if one is not None)
    if count < test.count:
        test = test.subset(choose_evenly(test, count, SEED))
    return Images(
        chosen,
        inputs_from_source(chosen, preprocess, chosen.count),
        inputs_from_source(test, preprocess, test.count),
        test.labels if network.labelled else None,
    )
