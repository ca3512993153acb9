"""Measure INT8 on trained networks: ours beside everybody else's tools, all calibrated and judged on the same images.

    python scripts/accuracy.py                                   # the networks of scripts/accuracy.toml, made where they are not there
    python scripts/accuracy.py --networks mine.toml --only NAME  # and keep what is there of the others
    python scripts/accuracy.py --table                           # write the page anew from what was measured

What was measured stands in docs/measurements/accuracy.json, a network at a time; the page is docs/accuracy.md. Others' answers are kept in
--work, so that a second run measures ours alone. Exit code 4 where ours is not first in SQNR among the graphs that TensorRT accepts, or
another tool is ahead in accuracy by the paired test. Each tool but onnxruntime wants an environment of its own:

    python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]'
    python -m venv nncf && nncf/bin/pip install nncf onnx onnxruntime
    python -m venv aimet && aimet/bin/pip install aimet-onnx
    python scripts/accuracy.py --modelopt-python modelopt/bin/python --nncf-python nncf/bin/python --aimet-python aimet/bin/python
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx
import onnxruntime as ort
from _accuracy_figures import Marks, figures, logits, paired, right
from _accuracy_networks import SEED, Images, Network, bundle_of, images_of, networks_from_file
from _accuracy_page import page_from_measurements, shortcomings
from _accuracy_tools import (
    OURS,
    PACKAGES,
    VARIANTS,
    Candidate,
    default_pythons,
    digest_of,
    measure,
    others,
    ours,
    package_of,
    versions_of,
)

from calibration.observers import observers
from exporter.lowering.ranges import CALIBRATION_IMAGES
from runtimes.bundle import Bundle
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BadInput, ResnetExportError
from runtimes.processor import processor

ROOT = Path(__file__).resolve().parent.parent
MEASURED, PAGE = ROOT / "docs" / "measurements" / "accuracy.json", ROOT / "docs" / "accuracy.md"
NETWORKS = ROOT / "scripts" / "accuracy.toml"
WORK = ROOT / "build" / "accuracy"


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        pythons, versions: of the others' tools, by package.
        images: the most test images of a network; None for its own number.
    """

    work: Path
    calibrators: tuple[str, ...]
    tools: tuple[str, ...]
    pythons: Mapping[str, Path]
    versions: Mapping[str, str]
    calibration_images: int
    images: int | None


def measure_network(network: Network, settings: Settings) -> dict[str, Any]:
    """A network's FP32 figures, and every candidate's."""
    bundle = bundle_of(network, settings.work)
    images = images_of(network, bundle, settings.calibration_images, settings.images)
    reference = logits(onnx.load(bundle.file("model.onnx")), images.test, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    digest, kept = digest_of(bundle, images), settings.work / "kept"
    rows: list[dict[str, Any]] = []
    mine: Marks | None = None
    for candidate in [
        *ours(bundle, images, settings.calibrators),
        *others(bundle, images, settings.tools, settings.pythons, settings.versions),
    ]:
        click.echo(f"{network.name}: {candidate.tool} {candidate.variant}".rstrip(), err=True)
        one = measure(candidate, images, kept, digest)
        row = row_of(candidate, one.bytes, one.refused)
        row |= {way: figures(getattr(one.answers, way), reference, images.labels) for way in ("exact", "plain")}
        if images.labels is not None:
            marks = right(one.answers.exact, images.labels)
            if mine is None and candidate.tool == OURS:
                mine = marks
            elif mine is not None and candidate.tool != OURS:
                row["ours_and_it"] = paired(mine, marks)
        rows.append(row)
    return {
        "date": today(),
        "model": bundle.manifest.model.name,
        "classes": bundle.manifest.model.classes,
        "calibration_images": len(images.calibration),
        "images": len(images.test),
        "fp32": fp32_figures(reference, images, bundle),
        "rows": rows,
    }


def row_of(candidate: Candidate, size: int, refused: str) -> dict[str, Any]:
    return {"tool": candidate.tool, "variant": candidate.variant, "bytes": size, "refused": refused}


def fp32_figures(reference: Any, images: Images, bundle: Bundle) -> dict[str, Any]:
    size: dict[str, Any] = {"bytes": bundle.file("model.onnx").stat().st_size}
    return size if images.labels is None else size | {"right": int(right(reference, images.labels).sum())}


def environment(versions: Mapping[str, str]) -> dict[str, Any]:
    """When, where and with what."""
    packages = ("numpy", "onnx", "onnxruntime", "torch")
    mine = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    return {
        "date": today(),
        "machine": f"{processor().name}, {os.cpu_count()} cores",
        "cpu_flags": list(processor().flags),
        "seed": SEED,
        "versions": mine | dict(versions),
    }


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def write(measured: dict[str, Any], target: Path, page: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(target, (json.dumps(measured, indent=1) + "\n").encode())
    write_in_one_step(page, page_from_measurements(measured).encode())


def chosen(files: tuple[Path, ...], only: tuple[str, ...]) -> list[Network]:
    """The networks asked for.

    Raises:
        BadInput: a file is no list of networks, or there is none of a name.
    """
    networks = [one for path in files for one in networks_from_file(path)]
    unknown = set(only) - {one.name for one in networks}
    if unknown:
        raise BadInput(f"--only: expected one of {', '.join(one.name for one in networks)}, got {unknown.pop()}")
    return [one for one in networks if not only or one.name in only]


@click.command(help=__doc__.split("\n", 1)[0], epilog="How to install the tools: see the head of the script.")
@click.option(
    "--networks",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="List of networks, TOML; may be repeated.  [default: scripts/accuracy.toml]",
)
@click.option("--only", multiple=True, metavar="NAME", help="Only this network; may be repeated.")
@click.option(
    "--calibrator",
    "calibrators",
    multiple=True,
    type=click.Choice(sorted(observers())),
    help="Ours with it, too; may be repeated. Ours as it is by default is always measured.",
)
@click.option(
    "--tool",
    "tools",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    help="Only this tool of others; may be repeated.",
)
@click.option("--ours-only", is_flag=True, help="None of the others' tools.")
@click.option(
    "--modelopt-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter with nvidia-modelopt[onnx].",
)
@click.option(
    "--nncf-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter with nncf, onnx and onnxruntime.",
)
@click.option(
    "--aimet-python", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Interpreter with aimet-onnx."
)
@click.option("--calibration-images", type=click.IntRange(min=1), default=CALIBRATION_IMAGES, show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="At most so many test images.  [default: the list's]")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=WORK,
    show_default="build/accuracy",
    help="For networks, and others' answers.",
)
@click.option(
    "--measured",
    "target",
    type=click.Path(path_type=Path),
    default=MEASURED,
    show_default="docs/measurements/accuracy.json",
)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE, show_default="docs/accuracy.md")
@click.option("--table", "table_only", is_flag=True, help="Measure nothing, write the page anew.")
def main(**options: Any) -> None:
    target, page = options["target"], options["page"]
    measured = json.loads(target.read_text()) if target.exists() else {"networks": {}}
    try:
        if not options["table_only"]:
            settings, networks = settings_of(options), chosen(options["files"] or (NETWORKS,), options["only"])
            for network in networks:
                networks_found = {**measured["networks"], network.name: measure_network(network, settings)}
                measured = {**environment(settings.versions), "networks": networks_found}
                write(measured, target, page)
        if not measured["networks"]:
            raise BadInput(f"--table: there is no {target}; leave the option out to measure")
        write(measured, target, page)
    except ResnetExportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(str(page))
    missed = shortcomings(measured)
    for line in missed:
        click.echo(line, err=True)
    sys.exit(4 if missed else 0)


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The command line, its tools' versions looked up before minutes of work.

    Raises:
        BackendUnavailable: a tool is not installed in its interpreter.
    """
    given = {"ModelOpt": "modelopt_python", "NNCF": "nncf_python", "AIMET": "aimet_python"}
    pythons = default_pythons() | {PACKAGES[tool]: options[name] for tool, name in given.items() if options[name]}
    tools = () if options["ours_only"] else options["tools"] or tuple(VARIANTS)
    pythons = {package: python for package, python in pythons.items() if package in map(package_of, tools)}
    return Settings(
        work=options["work"].resolve(),
        calibrators=options["calibrators"],
        tools=tools,
        pythons=pythons,
        versions=versions_of(pythons),
        calibration_images=options["calibration_images"],
        images=options["images"],
    )


if __name__ == "__main__":
    main()
